#include "cpu.cpp"
#include "cpu_backward.cpp"
