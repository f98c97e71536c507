"""What is measured by hand: costs, memory and speed, printed by command."""
