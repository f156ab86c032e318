// Does the tile instructions of AMX-BF16 on a machine that has none: it catches the signal that each raises, decodes the
// machine code, acts on EmulatedTiles, and goes on behind it. So kernels' own code runs: encodings, addresses, strides,
// configurations. For one thread. Encodings: Intel's Software Developer's Manual, volume 2, each instruction's page.
#define FASTDIFF_ISA caught
#include "common/amx_emulation.h"

#include <csignal>
#include <ucontext.h>

namespace {

using fastdiff::caught::EmulatedTiles;

struct Counts {  // as in test_instructions.py
  int64_t configurations, loads, hinted, products, zeros, stores, releases;
  int64_t not_aligned;    // loads from addresses that are no multiple of 64
  int64_t other_strides;  // loads of rows not 64 bytes apart, stores of rows not 128
  int64_t rows_loaded, rows_multiplied;
} counts;

EmulatedTiles tiles;
struct sigaction before;

constexpr int kRegisters[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                              REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

// The instruction at `code`, with three-byte VEX prefix in map 0F38.
struct Instruction {
  const unsigned char* next;
  int opcode, prefix, reg, rm, vvvv;  // prefix: 0 none, 1 66, 2 F3, 3 F2
  bool memory, has_index = false;
  const unsigned char* address = nullptr;
  int64_t index = 0;

  Instruction(const unsigned char* code, const greg_t* registers) {
    opcode = code[3], prefix = code[2] & 3, vvvv = ~(code[2] >> 3) & 15;
    const int modrm = code[4], mod = modrm >> 6;
    reg = modrm >> 3 & 7, rm = modrm & 7, memory = mod != 3, next = code + 5;
    if (!memory) return;
    int base = rm;
    if (rm == 4) {
      const int sib = *next++, number = (sib >> 3 & 7) | (code[1] & 0x40 ? 0 : 8);
      base = sib & 7, has_index = number != 4;
      if (has_index) index = registers[kRegisters[number]] << (sib >> 6);
    }
    int64_t displacement = 0;
    if (mod == 1) displacement = static_cast<int8_t>(*next++);
    if (mod == 2 || (mod == 0 && base == 5)) {
      int32_t wide;
      std::memcpy(&wide, next, sizeof(wide));
      displacement = wide, next += sizeof(wide);
    }
    const bool by_instruction = mod == 0 && rm == 5, without_base = mod == 0 && rm == 4 && base == 5;
    const int64_t from = by_instruction ? reinterpret_cast<int64_t>(next)
                         : without_base ? 0
                                        : registers[kRegisters[base | (code[1] & 0x20 ? 0 : 8)]];
    address = reinterpret_cast<const unsigned char*>(from + displacement);
  }
};

bool is_vex_0f38(const unsigned char* code) { return code[0] == 0xC4 && (code[1] & 31) == 2 && !(code[2] & 0x84); }

// Whether it was one of them.
bool act(const Instruction& i) {
  if (i.opcode == 0x49 && i.memory && i.prefix == 0) {
    ++counts.configurations, tiles.configure(i.address);
  } else if (i.opcode == 0x49 && !i.memory && i.prefix == 0) {
    ++counts.releases, tiles.release();
  } else if (i.opcode == 0x49 && !i.memory && i.prefix == 3) {
    ++counts.zeros, tiles.zero(i.reg);
  } else if (i.opcode == 0x4B && i.has_index && (i.prefix == 1 || i.prefix == 3)) {
    ++counts.loads, counts.hinted += i.prefix == 1;
    counts.not_aligned += reinterpret_cast<uintptr_t>(i.address) % 64 != 0, counts.other_strides += i.index != 64;
    tiles.load(i.reg, i.address, i.index);
    counts.rows_loaded += tiles.rows(i.reg);
  } else if (i.opcode == 0x4B && i.has_index && i.prefix == 2) {
    ++counts.stores, counts.other_strides += i.index != 128;
    tiles.store(i.reg, const_cast<unsigned char*>(i.address), i.index);
  } else if (i.opcode == 0x5C && !i.memory && i.prefix == 2) {
    ++counts.products, tiles.dot_pairs(i.reg, i.rm, i.vvvv);
    counts.rows_multiplied += tiles.rows(i.reg);
  } else {
    return false;
  }
  return true;
}

void on_signal(int number, siginfo_t*, void* context) {
  greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const auto* code = reinterpret_cast<const unsigned char*>(registers[REG_RIP]);
  if (is_vex_0f38(code)) {
    const Instruction i(code, registers);
    if (act(i)) {
      registers[REG_RIP] = reinterpret_cast<greg_t>(i.next);
      return;
    }
  }
  sigaction(number, &before, nullptr);  // not ours: the instruction raises it again
}

}  // namespace

extern "C" {

void begin_catching() {
  counts = {};
  struct sigaction action = {};
  action.sa_sigaction = on_signal, action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, &before);
}

void end_catching() { sigaction(SIGILL, &before, nullptr); }

const Counts* caught_counts() { return &counts; }

// sums [rows][columns] += a [rows][2 pairs] b [pairs][2 columns], by the emulation alone.
void emulated_product(int rows, int pairs, int columns, float* sums, const uint16_t* a, const uint16_t* b) {
  fastdiff::caught::TileConfig config;
  const int row_bytes[] = {4 * columns, 4 * pairs, 4 * columns}, counts_of_rows[] = {rows, rows, pairs};
  for (int i = 0; i < 3; ++i)
    config.row_bytes[i] = static_cast<uint16_t>(row_bytes[i]), config.rows[i] = static_cast<uint8_t>(counts_of_rows[i]);
  EmulatedTiles t;
  t.configure(&config);
  t.load(0, sums, row_bytes[0]), t.load(1, a, row_bytes[1]), t.load(2, b, row_bytes[2]);
  t.dot_pairs(0, 1, 2);
  t.store(0, sums, row_bytes[0]);
}

}  // extern "C"
