// The demo's guest: walks over all of its memory in an order of chance, mixes what it finds into a running hash
// and back into memory, and prints numbered lines of it. ARM64, EL1, MMU off, no exceptions.
//
// What each word of memory holds thus depends on all that was done before, and each later line depends on the words:
// a page, a register or a step that is lost, or done twice, shows in every line that follows.
// colo/emulator/guest/transcript.py computes the same lines in Python.
//
// At reset, with pc at `start` and everything else 0:
//   x0 address of the first walked page, x1 their number, x2 steps per tick, x3 ticks per line, x4 lines, x5 seed
//   sp end of the stack
//
// The machine (colo/emulator/machine.py):
//   0x09000000 console   +0 DATA: a byte written is printed
//   0x09010000 timer     +0 WAIT: the next WFI lasts until the next tick   +8 OFF: the machine is switched off

        .set    CONSOLE, 0x09000000
        .set    TIMER, 0x09010000
        .set    WAIT, 0
        .set    OFF, 8

data    .req    x19
pages   .req    x20
steps   .req    x21
ticks   .req    x22
lines   .req    x23
chance  .req    x24             // a linear congruential generator
hash    .req    x25
line    .req    x26
step    .req    x27
console .req    x28
timer   .req    x18
gain    .req    x17             // the generator's factor
offset  .req    x16             // and its summand
mixer   .req    x15             // the hash's factor
// v0: the sum of (hash, chance) after each step, so that vector registers are state too

        .text
        .globl  start
start:
        mov     data, x0
        mov     pages, x1
        mov     steps, x2
        mov     ticks, x3
        mov     lines, x4
        mov     chance, x5
        mov     hash, xzr
        mov     line, xzr
        mov     step, xzr
        movi    v0.2d, #0
        ldr     console, =CONSOLE
        ldr     timer, =TIMER
        ldr     gain, =6364136223846793005
        ldr     offset, =1442695040888963407
        ldr     mixer, =0x9e3779b97f4a7c15

        // Word n of the walked memory (from 0) is (n + 1) * mixer: no two pages are alike, none is zero.
        lsl     x2, pages, #8
        mov     x1, data
        mov     x0, mixer
        lsl     x4, mixer, #1
        mov     x3, x4
1:      stp     x0, x3, [x1], #16
        add     x0, x0, x4
        add     x3, x3, x4
        subs    x2, x2, #1
        b.ne    1b

        adr     x0, say_walk
        bl      print
        mov     x0, pages
        mov     x1, #8
        bl      decimal
        adr     x0, say_pages
        bl      print
        mov     x0, chance
        bl      hexadecimal
        bl      newline

next_line:
        mov     x14, ticks
next_tick:
        str     wzr, [timer, #WAIT]
        wfi
        mov     x13, steps
        cbz     x13, tick_done
next_step:
        madd    chance, chance, gain, offset
        umulh   x0, chance, pages               // chance / 2^64 of them
        add     x0, data, x0, lsl #12
        ubfx    x1, chance, #20, #3
        add     x0, x0, x1, lsl #3
        mov     x2, #8                          // eight words, 512 bytes apart
1:      ldr     x1, [x0]
        eor     hash, hash, x1
        ror     hash, hash, #23
        mul     hash, hash, mixer
        add     x1, x1, hash
        str     x1, [x0]
        add     x0, x0, #512
        subs    x2, x2, #1
        b.ne    1b
        mov     v1.d[0], hash
        mov     v1.d[1], chance
        add     v0.2d, v0.2d, v1.2d
        add     step, step, #1
        subs    x13, x13, #1
        b.ne    next_step
tick_done:
        subs    x14, x14, #1
        b.ne    next_tick

        add     line, line, #1
        adr     x0, say_line
        bl      print
        mov     x0, line
        mov     x1, #6
        bl      decimal
        adr     x0, say_step
        bl      print
        mov     x0, step
        mov     x1, #10
        bl      decimal
        adr     x0, say_hash
        bl      print
        mov     x0, hash
        bl      hexadecimal
        adr     x0, say_sum
        bl      print
        mov     x0, v0.d[0]
        mov     x1, v0.d[1]
        eor     x0, x0, x1
        bl      hexadecimal
        bl      newline
        cmp     line, lines
        b.ne    next_line

        adr     x0, say_done
        bl      print
        str     wzr, [timer, #OFF]
1:      b       1b

// Print the string at x0, up to its NUL.
print:
1:      ldrb    w1, [x0], #1
        cbz     w1, 2f
        strb    w1, [console]
        b       1b
2:      ret

newline:
        mov     w1, #10
        strb    w1, [console]
        ret

// Print the x1 last decimal digits of x0: made from the last one on, on the stack.
decimal:
        mov     x5, sp
        sub     x6, x5, #32
        mov     sp, x6
        add     x2, x6, x1
        strb    wzr, [x2]
        mov     x3, #10
1:      udiv    x4, x0, x3
        msub    x0, x4, x3, x0
        add     w0, w0, #'0'
        strb    w0, [x2, #-1]!
        mov     x0, x4
        cmp     x2, x6
        b.ne    1b
2:      ldrb    w1, [x2], #1
        cbz     w1, 3f
        strb    w1, [console]
        b       2b
3:      mov     sp, x5
        ret

// Print x0 as 16 hexadecimal digits.
hexadecimal:
        mov     x2, #16
1:      ror     x0, x0, #60
        and     w1, w0, #15
        cmp     w1, #10
        b.lo    2f
        add     w1, w1, #('a' - '0' - 10)
2:      add     w1, w1, #'0'
        strb    w1, [console]
        subs    x2, x2, #1
        b.ne    1b
        ret

say_walk:       .asciz  "walk over "
say_pages:      .asciz  " pages, seed "
say_line:       .asciz  "line "
say_step:       .asciz  " step "
say_hash:       .asciz  " hash "
say_sum:        .asciz  " sum "
say_done:       .asciz  "done\n"
        .balign 8
        .pool
