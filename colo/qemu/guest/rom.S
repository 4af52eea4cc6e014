# The test guest as the machine's firmware: a BIOS of our own needs milliseconds where SeaBIOS needs seconds.
#
# __init__.py puts this at the start of a 64 KiB image, boot.bin at 0x400 and `ljmp $0xf000, $0` at the reset vector.

        .set    BOOT_BYTES, 1024

        .text
        .globl  start
        .code16
start:
        cli
        cld
        xorw    %ax, %ax
        movw    %ax, %es
        movw    %cs, %ax
        movw    %ax, %ds
        movw    $0x0400, %si
        movw    $0x7c00, %di
        movw    $(BOOT_BYTES / 2), %cx
        rep movsw

        # Both interrupt controllers as a BIOS leaves them: IRQ 0 at vector 8, IRQ 8 at 0x70.
        movb    $0x11, %al
        outb    %al, $0x20
        outb    %al, $0xa0
        movb    $0x08, %al
        outb    %al, $0x21
        movb    $0x70, %al
        outb    %al, $0xa1
        movb    $0x04, %al
        outb    %al, $0x21
        movb    $0x02, %al
        outb    %al, $0xa1
        movb    $0x01, %al
        outb    %al, $0x21
        outb    %al, $0xa1
        ljmp    $0, $0x7c00
