// One file is sent with one request, whose answer is a line of JSON for each thing done.
// Names come from files and classes: they are set as text, never as HTML.
"use strict";

const find = (selector, inside = document) => inside.querySelector(selector);
const percent = (score) => (100 * score).toFixed(1) + " %";
let about = {};
let last = Promise.resolve(); // files are answered one after the other

fetch("about").then((response) => response.json()).then((answer) => {
  about = answer;
  find("#about").textContent = about.text;
  find("summary").textContent = `${about.classes.length} classes`;
  find("#classes").textContent = about.classes.join(", ");
  find("#drop .noun").textContent = about.noun;
  find("#files").accept = about.noun.replace(/s$/, "/*"); // as video/*
});

function take(files) {
  for (const file of files) {
    const card = find("template").content.cloneNode(true).firstElementChild;
    find("h2", card).textContent = file.name;
    find("#answers").prepend(card);
    last = last.then(() => send(file, card)).catch((error) => fail(card, error.message));
  }
}

const drop = find("#drop");
find("#files").addEventListener("change", (event) => {
  take([...event.target.files]);
  event.target.value = ""; // so that the same file may be chosen again
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
addEventListener("dragleave", () => drop.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  take([...event.dataTransfer.files]);
});

async function send(file, card) {
  if (file.size > about.max_bytes) {
    const limit = Math.floor(about.max_bytes / 1e6);
    throw new Error(`Larger than the ${limit} MB that are taken (demo.max_megabytes).`);
  }
  await file.slice(0, 1).arrayBuffer().catch(() => {
    throw new Error("This cannot be read: drop files, not folders.");
  });
  const response = await fetch("answer", { method: "PUT", body: file }).catch(() => {
    throw new Error("No answer: is run.py --mode=demo still running?");
  });
  if (!response.ok) throw new Error(await response.text());
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "", isAnswered = false;
  for (;;) {
    const { value, done } = await reader.read();
    const lines = (text + (value || "")).split("\n");
    text = lines.pop();
    for (const line of lines) {
      const event = JSON.parse(line);
      if (event.error) throw new Error(event.error);
      if (event.doing) find(".state span", card).textContent = event.doing;
      if (event.labels) {
        show(card, event);
        isAnswered = true;
      }
    }
    if (done) break;
  }
  if (!isAnswered) throw new Error("The answer broke off: see the terminal of run.py.");
}

function fail(card, sentence) {
  find(".state", card).hidden = true;
  find(".error", card).hidden = false;
  find(".error", card).textContent = sentence;
}

function show(card, answer) {
  find(".state", card).hidden = true;
  find(".answer", card).hidden = false;
  find(".facts", card).textContent = answer.facts;
  for (const { name, score } of answer.labels) {
    const [item, line, meter] = ["li", "div", "meter"].map((tag) => document.createElement(tag));
    for (const text of [name, percent(score)]) {
      line.append(Object.assign(document.createElement("span"), { textContent: text }));
    }
    line.lastChild.className = "score";
    meter.value = score;
    meter.setAttribute("aria-label", name);
    item.append(line, meter);
    find("ol", card).append(item);
  }
  const player = showMaps(card, answer.maps);
  if (answer.timeline) showTimeline(card, answer.timeline, player);
}

function showMaps(card, maps) {
  const place = find(".maps", card);
  if (!maps) {
    place.hidden = true;
    return null;
  }
  const bytes = Uint8Array.from(atob(maps.base64), (character) => character.charCodeAt(0));
  const url = URL.createObjectURL(new Blob([bytes], { type: maps.type }));
  const isVideo = maps.type.startsWith("video/");
  const element = document.createElement(isVideo ? "video" : "img");
  if (isVideo) {
    Object.assign(element, { muted: true, loop: true, controls: true, autoplay: true });
    element.playsInline = true;
  } else {
    element.alt = "token maps over the image";
  }
  element.src = url;
  find("h3", place).after(element);
  return isVideo ? element : null;
}

const ROW = 34, LEFT = 150, RIGHT = 12, WIDTH = 1000; // of the timeline, in SVG's units

function draw(parent, tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

function showTimeline(card, { edges, rows }, player) {
  const seconds = edges[edges.length - 1];
  const place = find(".timeline", card);
  place.hidden = false;
  const height = ROW * rows.length + 22;
  const svg = draw(place, "svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img" });
  svg.setAttribute("aria-label", "scores over time");
  const x = (time) => LEFT + ((WIDTH - LEFT - RIGHT) * time) / seconds;
  rows.forEach(({ name, scores }, row) => {
    const bottom = ROW * (row + 1) - 4, full = ROW - 8;
    const short = name.length > 20 ? name.slice(0, 19) + "…" : name;
    draw(svg, "text", { x: 0, y: bottom - 8 }, short);
    draw(svg, "rect", {
      class: "ground", x: LEFT, y: bottom - full, width: x(seconds) - LEFT, height: full,
    });
    let path = `M${x(0)} ${bottom}`;
    scores.forEach((score, i) => {
      path += `V${bottom - full * score}H${x(edges[i + 1])}`;
    });
    draw(svg, "path", { class: "area", d: path + `V${bottom}Z` });
    const title = draw(svg, "rect", {
      x: LEFT, y: bottom - full, width: x(seconds) - LEFT, height: full, fill: "none",
      "pointer-events": "all",
    });
    draw(title, "title", {}, name);
  });
  for (const time of ticks(seconds)) {
    const anchor = time === 0 ? "start" : "middle";
    const at = { class: "tick", x: x(time), y: height - 4, "text-anchor": anchor };
    draw(svg, "text", at, clock(time, seconds));
  }
  if (!player) return;
  const now = draw(svg, "line", { class: "now", y1: 0, y2: height - 22 });
  const move = () => {
    const at = x(Math.min(player.currentTime, seconds));
    now.setAttribute("x1", at);
    now.setAttribute("x2", at);
    requestAnimationFrame(move);
  };
  move();
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * WIDTH;
    const share = (place - LEFT) / (WIDTH - LEFT - RIGHT);
    player.currentTime = Math.min(Math.max(share, 0), 1) * seconds;
  });
}

function clock(time, total) {
  if (total < 120) return `${time} s`;
  return `${Math.floor(time / 60)}:${String(time % 60).padStart(2, "0")}`;
}

function ticks(seconds) {
  const steps = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600];
  const step = steps.find((each) => seconds / each <= 10) || 7200;
  return Array.from({ length: Math.floor(seconds / step) + 1 }, (_, i) => i * step);
}
