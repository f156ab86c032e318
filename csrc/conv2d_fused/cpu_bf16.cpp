#include "cpu.cpp"
