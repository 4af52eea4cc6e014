# The test guest: a boot sector, and one more that it loads, that change memory at a stated rate so that a torn checkpoint shows.
#
# It is built by `build` in this directory into boot.bin; __init__.py patches the parameters at the end and says what
# may be in memory at any instant (check_guest_memory). In short: step n writes `words` 64-bit words, `gap` bytes apart,
# into page n mod pages of the range; word j gets
#
#       value(n, j) = (n + 1) * G + j * H      (mod 2^64)
#
# after checking that it still holds what step n - pages wrote there (or 0 on the first pass), and folding that into a
# checksum. Then the checksum and last the counter are stored, each by one 64-bit store. So memory as a whole is a
# function of (counter, words already written in this step), and a page, or the registers, from another checkpoint
# makes either the checker or the guest itself cry out.
#
# Addresses:   0x1000 state page: counter, checksum, torn flag     0x2000 IDT     0x7c00 this code, stack below
#              0x10000 page tables: the first 2 GiB, identity, 2 MiB pages

        .set    STATE, 0x1000
        .set    COUNTER, STATE
        .set    CHECKSUM, STATE + 8
        .set    TORN, STATE + 16
        .set    IDT, 0x2000
        .set    PML4, 0x10000
        .set    PDPT, 0x11000
        .set    PD, 0x12000
        .set    PD_COUNT, 2
        .set    COM1, 0x3f8

        .text
        .globl  start
        .code16
start:
        cli
        cld
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %ss
        movw    $0x7c00, %sp
        ljmp    $0, $1f                 # some BIOSes enter at 07c0:0000
1:      movw    %ax, %es
        cmpl    $0x4f4c4f43, magic      # started by rom.S: all of it is here
        je      2f
        movw    $0x0201, %ax            # else read the second sector; %dl is the drive we came from
        movw    $0x7e00, %bx
        movw    $0x0002, %cx
        movb    $0, %dh
        int     $0x13
        jc      .                       # unreadable: stands still, the test sees no line
        xorw    %ax, %ax
2:
        # State page, IDT: zero. Page tables: zero, then filled.
        movw    %ax, %es
        movw    $STATE, %di
        movw    $0x1000, %cx            # 0x2000 bytes: both pages
        rep stosw

        movw    $(PML4 >> 4), %dx
        movw    %dx, %es
        xorw    %di, %di
        movw    $0x2800, %cx            # PML4, PDPT, both PDs and the local APIC's
        rep stosw
        movl    $(PDPT + 3), %es:0
        movw    $0x2000, %di
        movl    $(PD + 3), %es:0x1000
        movl    $(PD + 0x1003), %es:0x1008
        movl    $(PD + 0x2003), %es:0x1018
        movl    $0xfee00093, %es:0x4fb8 # the local APIC's 2 MiB, uncached
        movw    $(PD_COUNT * 512), %cx
        movl    $0x83, %eax             # present, writable, 2 MiB; %di is at PD, the upper halves stay 0
3:      stosl
        addw    $4, %di
        addl    $0x200000, %eax
        loop    3b

        inb     $0x92, %al              # A20 open
        orb     $2, %al
        andb    $0xfe, %al
        outb    %al, $0x92

        # Long mode: PAE, page tables, EFER.LME, then protection and paging at once.
        movl    %cr4, %eax
        orb     $0x20, %al
        movl    %eax, %cr4
        movl    $PML4, %eax
        movl    %eax, %cr3
        movl    $0xc0000080, %ecx
        rdmsr
        orb     $1, %ah
        wrmsr
        lgdt    gdtr
        movl    %cr0, %eax
        orl     $0x80000001, %eax
        movl    %eax, %cr0
        ljmp    $8, $long_mode

        .code64
long_mode:
        # Interrupts of the old controller reach the processor through LINT0 (a BIOS would have set this).
        movl    $0xfee00000, %edi
        movl    $0x1ff, 0xf0(%rdi)
        movl    $0x700, 0x350(%rdi)

        # The BIOS left IRQ 0 at vector 8; only it and the keyboard's, at 9, are let through. (No fault is expected: one
        # resets the machine.)
        call    vectors
        lidt    idtr
        movb    $0xfc, %al
        outb    %al, $0x21
        movb    $0xff, %al
        outb    %al, $0xa1
        movb    $0x34, %al              # channel 0, rate generator
        outb    %al, $0x43
        movb    divisor(%rip), %al
        outb    %al, $0x40
        movb    divisor + 1(%rip), %al
        outb    %al, $0x40

        # Registers that live: rbx n, rbp value(n, 0), rsi the page's address, r12 pages left in this pass,
        # r13 checksum, r14 ticks until the next line, r15 G. They travel in the device state, their copies in RAM.
        xorl    %ebx, %ebx
        xorl    %r13d, %r13d
        movl    $1, %r14d
        movabs  $0x9e3779b97f4a7c15, %r15
        movq    %r15, %rbp
new_pass:
        movl    first(%rip), %esi
        movl    pages(%rip), %r12d
        jmp     idle

        # One batch of steps per timer tick.
batch:
        movl    steps(%rip), %ecx
step:
        cmpq    %rbx, COUNTER           # registers and RAM from the same checkpoint?
        jne     torn
        movq    %rbp, %r8
        movq    %rsi, %rdi
        movzwl  words(%rip), %r9d
word:
        movq    (%rdi), %rdx
        movl    pages(%rip), %eax
        cmpq    %rax, %rbx
        movq    %rdx, %r11
        jb      4f                      # first pass: expect 0
        imulq   %r15, %rax              # else what was there is `pages` steps old
        subq    %r8, %rdx
        addq    %rax, %rdx
4:      testq   %rdx, %rdx
        jnz     torn
        addq    %r11, %r13
        movq    %r8, (%rdi)
        addq    h_factor(%rip), %r8
        movzwl  gap(%rip), %eax
        addq    %rax, %rdi
        decl    %r9d
        jnz     word
        movq    %r13, CHECKSUM
        incq    %rbx
        addq    %r15, %rbp
        movl    stride(%rip), %eax
        addq    %rax, %rsi
        decl    %r12d
        jnz     5f
        movl    first(%rip), %esi
        movl    pages(%rip), %r12d
5:      movq    %rbx, COUNTER
        decl    %ecx
        jnz     step
idle:
        call    sign_of_life
        decl    %r14d
        jnz     6f
        movl    lines(%rip), %r14d
        movl    $said, %edi
        call    say
6:      sti
        hlt
        cli
        jmp     batch

        .org    510
        .word   0xaa55

        # The second sector.
torn:
        incl    TORN
        movl    $said_torn, %edi
        call    say
7:      cli
        hlt
        jmp     7b

tick:                                   # only wakes the hlt
        pushq   %rax
        movb    $0x20, %al
        outb    %al, $0x20
        popq    %rax
        iretq

sign_of_life:                           # a byte on the port that is named, as often as the timer ticks
        movzwl  beat(%rip), %edx
        testl   %edx, %edx
        jz      12f
        movb    %bl, %al
        outb    %al, %dx
12:     ret

vectors:
        movl    $(IDT + 8 * 16), %edi
        movl    $(0x00080000 + tick), (%rdi)
        movw    $0x8e00, 4(%rdi)
        movl    $(0x00080000 + key), 16(%rdi)
        movw    $0x8e00, 20(%rdi)
        ret

        # A key ends the machine, in one of four ways; both scan code sets, a BIOS may have chosen either.
key:
        inb     $0x60, %al
        cmpb    $0x19, %al              # p: powers off
        je      power_off
        cmpb    $0x4d, %al
        je      power_off
        cmpb    $0x13, %al              # r: resets
        je      reset
        cmpb    $0x2d, %al
        je      reset
        cmpb    $0x14, %al              # t: triple fault
        je      triple_fault
        cmpb    $0x2c, %al
        je      triple_fault
        cmpb    $0x2e, %al              # c: says that it crashed (-device pvpanic)
        je      panic
        cmpb    $0x21, %al
        je      panic
        movb    $0x20, %al
        outb    %al, $0x20
        iretq
power_off:                              # the PIIX4's or the ICH9's power management at port 0x600, and S5
        movl    $0x80000b40, %eax
        movl    $0x601, %ecx
        call    configure
        movl    $0x80000b80, %eax
        movl    $1, %ecx
        call    configure
        movl    $0x8000f840, %eax
        movl    $0x601, %ecx
        call    configure
        movl    $0x8000f844, %eax
        movl    $0x80, %ecx
        call    configure
        movw    $0x604, %dx
        movw    $0x2000, %ax
        outw    %ax, %dx
        jmp     7b
configure:
        movw    $0xcf8, %dx
        outl    %eax, %dx
        movw    $0xcfc, %dx
        movl    %ecx, %eax
        outl    %eax, %dx
        ret
reset:
        movb    $0xfe, %al
        outb    %al, $0x64
        jmp     7b
triple_fault:
        lidt    gdtr + 4                # a limit below any vector's
        ud2
panic:
        movw    $0x505, %dx
        movb    $1, %al
        outb    %al, %dx
        jmp     7b

        # Prints the text at %rdi, the counter in decimal and a newline on COM1.
say:
        movl    $said_guest, %r8d
        call    text
        movq    %rdi, %r8
        call    text
        movq    %rbx, %rax
        movl    $10, %r8d
        pushq   $0                      # what ends the digits
8:      xorl    %edx, %edx
        divq    %r8
        addb    $'0', %dl
        pushq   %rdx
        testq   %rax, %rax
        jnz     8b
9:      popq    %rax
        call    put
        testb   %al, %al
        jnz     9b
        movb    $'\n', %al
put:                                    # a NUL is not sent
        testb   %al, %al
        jz      11f
        movb    %al, %ah
        movw    $(COM1 + 5), %dx
10:     inb     %dx, %al
        testb   $0x20, %al
        jz      10b
        movb    %ah, %al
        movw    $COM1, %dx
        outb    %al, %dx
11:     ret
text:
        movb    (%r8), %al
        incl    %r8d
        call    put
        testb   %al, %al
        jnz     text
        ret

said_guest: .asciz "colo guest "
said_torn:  .ascii "TORN "
said:       .byte 0

        .balign 4
gdtr:   .word   15
        .long   gdt
idtr:   .word   10 * 16 - 1
        .quad   IDT
        .balign 8
gdt:    .quad   0
        .quad   0x00af9b000000ffff      # 64-bit code, ring 0

        .org    960
magic:  .ascii  "COLO"                  # what __init__.py looks for before it patches
steps:  .long   0                       # steps per tick
first:  .long   0                       # address of the first page
pages:  .long   0
stride: .long   0                       # bytes from one page to the next
lines:  .long   0                       # ticks per printed line
words:  .word   0                       # words written per page
gap:    .word   0                       # bytes from one word to the next
divisor: .word  0                       # of the 1193182 Hz timer
beat:   .word   0                       # port that gets a byte each tick; 0: none does
        .org    992
h_factor: .quad 0xc2b2ae3d27d4eb4f
        .org    1024
