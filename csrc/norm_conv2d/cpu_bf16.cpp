#include "cpu_backward.cpp"
