/* The matrix unit of AMX in software, for processors without it: carries out the instructions that the kernels use where
 * they trap, by their encodings and definitions in Intel's manual (SDM volume 2). What is not among them ends the process
 * as before. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

enum { TILES = 8, ROWS = 16, BYTES = 64 };

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} layout;

static __thread layout now;
static __thread uint8_t tile[TILES][ROWS][BYTES];
static struct sigaction before;
static _Atomic long carried_out;
static int emulating;

long amx_emulated(void) { return carried_out; }

static const int registers[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

typedef struct {
    int prefix, vvvv, opcode, reg, rm, stride_given, size;
    uint8_t *memory;
    int64_t stride;
} instruction;

static int64_t value(const ucontext_t *at, int number) { return (int64_t)at->uc_mcontext.gregs[registers[number]]; }

/* Reads C4, the map 0F38, a modrm and what memory it names. 0 for anything else. */
static int decode(const uint8_t *code, const ucontext_t *at, instruction *found) {
    if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || code[2] & 0x84) return 0;
    const int r = ~code[1] >> 7 & 1, x = ~code[1] >> 6 & 1, b = ~code[1] >> 5 & 1, modrm = code[4], mode = modrm >> 6;
    *found = (instruction){.prefix = code[2] & 3, .vvvv = ~code[2] >> 3 & 15, .opcode = code[3],
                           .reg = (modrm >> 3 & 7) | r << 3, .rm = (modrm & 7) | b << 3, .size = 5};
    if (mode == 3) return 1;
    int64_t address = 0;
    int base = modrm & 7, sib = -1;
    if (base == 4) {
        sib = code[found->size++];
        base = sib & 7;
        const int index = (sib >> 3 & 7) | x << 3;
        found->stride_given = index != 4;
        found->stride = index == 4 ? 0 : value(at, index) * (1 << (sib >> 6));
    }
    if (mode == 0 && base == 5) return 0; /* relative to the instruction: not written by our compilers so far */
    address = value(at, base | b << 3);
    if (mode == 1) address += (int8_t)code[found->size++];
    if (mode == 2) {
        int32_t far;
        memcpy(&far, code + found->size, sizeof far);
        address += far;
        found->size += 4;
    }
    found->memory = (uint8_t *)address;
    return 1;
}

static int usable(int number) { return number < TILES && now.palette == 1 && now.rows[number] && now.bytes[number]; }

static int configure(const uint8_t *from) {
    layout given;
    memcpy(&given, from, sizeof given);
    if (given.palette != 1 || given.start) return 0;
    for (int i = 0; i < 14; i++)
        if (given.reserved[i]) return 0;
    for (int i = 0; i < 16; i++) {
        if (given.rows[i] > ROWS || given.bytes[i] > BYTES || !given.rows[i] != !given.bytes[i]) return 0;
        if (i >= TILES && given.rows[i]) return 0;
    }
    now = given;
    memset(tile, 0, sizeof tile);
    return 1;
}

/* Rows above those of a tile are zeroed by what writes to it. */
static int load(const instruction *it) {
    if (!usable(it->reg) || !it->stride_given) return 0;
    uint8_t made[ROWS][BYTES] = {0};
    for (int row = 0; row < now.rows[it->reg]; row++) memcpy(made[row], it->memory + row * it->stride, now.bytes[it->reg]);
    memcpy(tile[it->reg], made, sizeof made);
    return 1;
}

static int store(const instruction *it) {
    if (!usable(it->reg) || !it->stride_given) return 0;
    for (int row = 0; row < now.rows[it->reg]; row++)
        memcpy(it->memory + row * it->stride, tile[it->reg][row], now.bytes[it->reg]);
    return 1;
}

/* first: whether bytes of the first source have a sign; second likewise. */
static int dot(const instruction *it, int first, int second) {
    const int to = it->reg, a = it->rm, b = it->vvvv;
    if (!usable(to) || !usable(a) || !usable(b) || to == a || to == b || a == b) return 0;
    if (now.bytes[to] % 4 || now.rows[to] != now.rows[a] || now.bytes[a] != 4 * now.rows[b] || now.bytes[b] != now.bytes[to]) return 0;
    for (int m = 0; m < now.rows[to]; m++)
        for (int k = 0; k < now.bytes[a] / 4; k++)
            for (int n = 0; n < now.bytes[to] / 4; n++) {
                uint32_t sum;
                memcpy(&sum, tile[to][m] + 4 * n, 4);
                for (int i = 0; i < 4; i++) {
                    const uint8_t one = tile[a][m][4 * k + i], other = tile[b][k][4 * n + i];
                    sum += (uint32_t)((first ? (int8_t)one : (int)one) * (second ? (int8_t)other : (int)other));
                }
                memcpy(tile[to][m] + 4 * n, &sum, 4);
            }
    return 1;
}

static int carry_out(const instruction *it) {
    enum { NONE, P66, F3, F2 };
    if (it->opcode != 0x5e && it->vvvv) return 0;
    if (it->opcode == 0x49 && it->prefix == NONE) {
        if (it->memory) return configure(it->memory);
        now = (layout){0};
        return 1;
    }
    if (it->opcode == 0x49 && it->prefix == F2 && !it->memory) {
        if (!usable(it->reg)) return 0;
        memset(tile[it->reg], 0, sizeof tile[it->reg]);
        return 1;
    }
    if (it->opcode == 0x4b && it->memory) return it->prefix == F2 ? load(it) : it->prefix == F3 ? store(it) : 0;
    if (it->opcode == 0x5e && !it->memory && it->reg < TILES && it->rm < TILES && it->vvvv < TILES)
        return dot(it, it->prefix == F2 || it->prefix == F3, it->prefix == F2 || it->prefix == P66);
    return 0;
}

static void trapped(int signal, siginfo_t *about, void *context) {
    (void)signal, (void)about;
    ucontext_t *at = context;
    instruction it;
    if (!decode((const uint8_t *)at->uc_mcontext.gregs[REG_RIP], at, &it) || !carry_out(&it)) {
        sigaction(SIGILL, &before, NULL); /* traps again, and is on its own */
        return;
    }
    at->uc_mcontext.gregs[REG_RIP] += it.size;
    carried_out++;
}

int amx_emulate(int on) {
    struct sigaction made = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO | SA_NODEFER};
    if (on == emulating) return 0;
    emulating = on;
    return on ? sigaction(SIGILL, &made, &before) : sigaction(SIGILL, &before, NULL);
}
