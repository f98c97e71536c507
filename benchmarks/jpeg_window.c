/* The limit of benchmarks/input.py: windows of JPEG files, by libjpeg-turbo alone.

   cc -O3 -shared -fPIC jpeg_window.c -o jpeg_window.so -ljpeg */
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

/* Decodes rows y .. y + height and columns x .. x + width of each file as RGB, one
   after the other into `out`; DCT and upsampling as TensorFlow's decode_jpeg. */
void decode_windows(const unsigned char **files, const unsigned long *sizes, int count,
                    int y, int x, int height, int width, unsigned char *out) {
  struct jpeg_error_mgr error;
  struct jpeg_decompress_struct jpeg;
  jpeg.err = jpeg_std_error(&error);
  jpeg_create_decompress(&jpeg);
  for (int i = 0; i < count; ++i) {
    jpeg_mem_src(&jpeg, files[i], sizes[i]);
    jpeg_read_header(&jpeg, TRUE);
    jpeg.out_color_space = JCS_RGB;
    jpeg.dct_method = JDCT_IFAST;
    jpeg_start_decompress(&jpeg);
    JDIMENSION left = x, wide = width; /* grow to whole blocks */
    jpeg_crop_scanline(&jpeg, &left, &wide);
    jpeg_skip_scanlines(&jpeg, y);
    unsigned char row[3 * wide];
    JSAMPROW rows[] = {row};
    for (int k = 0; k < height; ++k, out += 3 * width) {
      jpeg_read_scanlines(&jpeg, rows, 1);
      memcpy(out, row + 3 * (x - left), 3 * width);
    }
    jpeg_abort_decompress(&jpeg); /* what lies below is not read */
  }
  jpeg_destroy_decompress(&jpeg);
}
