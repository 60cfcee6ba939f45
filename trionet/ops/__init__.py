"""For those who run it: `limits` (descriptors), `collector` (the garbage collector's share of the latency tail)."""
