"""Devices of QEMU's ``pc`` machine, declared as a user of the package would: each a dataclass and its
description.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Annotated, Any

from colo.vmstate import (
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    Buffer,
    Description,
    Struct,
    Structs,
    Timer,
    Unused,
)

u8 = Annotated[int, U8()]
u16 = Annotated[int, U16()]
u32 = Annotated[int, U32()]
u64 = Annotated[int, U64()]
i32 = Annotated[int, I32()]
i64 = Annotated[int, I64()]


@dataclass
class Ticks:
    cpu_ticks_offset: i64 = 0
    unused: Annotated[None, Unused(size=8)] = None
    cpu_clock_offset: i64 = 0


TIMER = Description.of(Ticks, "timer", version=2, minimum_version=1)


@dataclass
class PitChannel:
    count: i32 = 0
    latched_count: u16 = 0
    count_latched: u8 = 0
    status_latched: u8 = 0
    status: u8 = 0
    read_state: u8 = 0
    write_state: u8 = 0
    write_latch: u8 = 0
    rw_mode: u8 = 0
    mode: u8 = 0
    bcd: u8 = 0
    gate: u8 = 0
    count_load_time: i64 = 0
    next_transition_time: i64 = 0


PIT_CHANNEL = Description.of(PitChannel, "pit channel", version=2)


@dataclass
class Pit:
    irq_disabled: Annotated[int, U32("channels[0].irq_disabled", since=3)] = 0
    channels: Annotated[list[PitChannel], Structs(of=PIT_CHANNEL, count=3)] = field(default_factory=list)
    next_ns: Annotated[int, I64("channels[0].next_transition_time")] = 0


PIT = Description.of(Pit, "i8254", version=3, minimum_version=2)


@dataclass
class Pic:
    last_irr: u8 = 0
    irr: u8 = 0
    imr: u8 = 0
    isr: u8 = 0
    priority_add: u8 = 0
    irq_base: u8 = 0
    read_reg_select: u8 = 0
    poll: u8 = 0
    special_mask: u8 = 0
    init_state: u8 = 0
    auto_eoi: u8 = 0
    rotate_on_auto_eoi: u8 = 0
    special_fully_nested_mode: u8 = 0
    init4: u8 = 0
    single_mode: u8 = 0
    elcr: u8 = 0


PIC = Description.of(Pic, "i8259", version=1)


@dataclass
class Rtc:
    cmos_data: Annotated[bytearray, Buffer(size=128)] = field(default_factory=lambda: bytearray(128))
    cmos_index: u8 = 0
    gap: Annotated[None, Unused(size=7 * 4)] = None
    periodic_timer: Annotated[int | None, Timer()] = None
    next_periodic_time: i64 = 0
    second_gap: Annotated[None, Unused(size=3 * 8)] = None
    irq_coalesced: Annotated[int, U32(since=2)] = 0
    period: Annotated[int, U32(since=2)] = 0
    base_rtc: Annotated[int, U64(since=3)] = 0
    last_update: Annotated[int, U64(since=3)] = 0
    offset: Annotated[int, I64(since=3)] = 0
    update_timer: Annotated[int | None, Timer(since=3)] = None
    next_alarm_time: Annotated[int, U64(since=3)] = 0


RTC = Description.of(Rtc, "mc146818rtc", version=3, minimum_version=1)


@dataclass
class Ps2:
    write_cmd: i32 = 0
    rptr: Annotated[int, I32("queue.rptr")] = 0
    wptr: Annotated[int, I32("queue.wptr")] = 0
    count: Annotated[int, I32("queue.count")] = 0
    data: Annotated[bytes, Buffer("queue.data", 256)] = bytes(256)


PS2 = Description.of(Ps2, "PS2 Common State", version=3, minimum_version=2)


@dataclass
class Ps2Keyboard:
    parent_obj: Annotated[Ps2, Struct(of=PS2)] = field(default_factory=Ps2)
    scan_enabled: i32 = 0
    translate: i32 = 0
    scancode_set: Annotated[int, I32(since=3)] = 0


PS2KBD = Description.of(Ps2Keyboard, "ps2kbd", version=3, minimum_version=2)


@dataclass
class Apic:
    apicbase: u32 = 0
    id: u8 = 0
    arb_id: u8 = 0
    tpr: u8 = 0
    spurious_vec: u32 = 0
    log_dest: u8 = 0
    dest_mode: u8 = 0
    isr: Annotated[Any, U32(count=8)] = field(default_factory=lambda: array("I", bytes(4 * 8)))
    tmr: Annotated[Any, U32(count=8)] = field(default_factory=lambda: array("I", bytes(4 * 8)))
    irr: Annotated[Any, U32(count=8)] = field(default_factory=lambda: array("I", bytes(4 * 8)))
    lvt: Annotated[Any, U32(count=6)] = field(default_factory=lambda: array("I", bytes(4 * 6)))
    esr: u32 = 0
    icr: Annotated[Any, U32(count=2)] = field(default_factory=lambda: array("I", bytes(4 * 2)))
    divide_conf: u32 = 0
    count_shift: i32 = 0
    initial_count: u32 = 0
    initial_count_load_time: i64 = 0
    next_time: i64 = 0
    timer_expiry: i64 = 0
    sipi_vector: int = 0
    wait_for_sipi: int = 0


# QEMU's one subsection here whose name has no slash.
APIC_SIPI: Description[Apic] = Description(
    "apic_sipi",
    version=1,
    fields=[I32("sipi_vector"), I32("wait_for_sipi")],
    needed=lambda apic: apic.wait_for_sipi != 0,
)
APIC = Description.of(Apic, "apic", version=3, subsections=[APIC_SIPI])


@dataclass
class DmaRegs:
    now: Annotated[list[int], I32(count=2)] = field(default_factory=list)
    base: Annotated[list[int], U16(count=2)] = field(default_factory=list)
    mode: u8 = 0
    page: u8 = 0
    pageh: u8 = 0
    dack: u8 = 0
    eop: u8 = 0


DMA_REGS = Description.of(DmaRegs, "dma_regs", version=1)


@dataclass
class Dma:
    command: u8 = 0
    mask: u8 = 0
    flip_flop: u8 = 0
    dshift: i32 = 0
    regs: Annotated[list[DmaRegs], Structs(of=DMA_REGS, count=4)] = field(default_factory=list)


DMA = Description.of(Dma, "dma", version=1)


@dataclass
class Ioapic:
    id: u8 = 0
    ioregsel: u8 = 0
    unused: Annotated[None, Unused(size=8)] = None
    irr: u32 = 0
    ioredtbl: Annotated[list[int], U64(count=24)] = field(default_factory=list)


IOAPIC = Description.of(Ioapic, "ioapic", version=3, minimum_version=1)


@dataclass
class HpetTimer:
    tn: u8 = 0
    config: u64 = 0
    cmp: u64 = 0
    fsb: u64 = 0
    period: u64 = 0
    wrap_flag: u8 = 0
    qemu_timer: Annotated[int | None, Timer()] = None


HPET_TIMER = Description.of(HpetTimer, "hpet_timer", version=1)


@dataclass
class Hpet:
    config: u64 = 0
    isr: u64 = 0
    hpet_counter: u64 = 0
    num_timers: Annotated[int, U8(since=2)] = 0
    timer: Annotated[list[HpetTimer], Structs(of=HPET_TIMER, count="num_timers", max_count=32)] = field(
        default_factory=list
    )


HPET = Description.of(Hpet, "hpet", version=2, minimum_version=1)


@dataclass
class Port92:
    outport: u8 = 0


PORT92 = Description.of(Port92, "port92", version=1)


@dataclass
class Keyboard:
    write_cmd: u8 = 0
    status: u8 = 0
    mode: u8 = 0
    pending_tmp: u8 = 0
    migration_flags: int = 0
    obsrc: int = 0
    obdata: int = 0
    cbdata: int = 0
    extended: bool = False


def _extended(kbd: Keyboard, _version: int) -> None:
    kbd.extended = True


KBD_EXTENDED: Description[Keyboard] = Description(
    "pckbd/extended_state",
    version=0,
    fields=[U32("migration_flags"), U32("obsrc"), U8("obdata"), U8("cbdata")],
    needed=lambda kbd: kbd.extended,
    post_load=_extended,
)
KBD = Description.of(Keyboard, "pckbd", version=3, subsections=[KBD_EXTENDED])


@dataclass
class Pckbd:
    kbd: Annotated[Keyboard, Struct(of=KBD)] = field(default_factory=Keyboard)


PCKBD = Description.of(Pckbd, "pckbd", version=3)

ALL: list[Description[Any]] = [
    TIMER,
    PIT,
    PIC,
    RTC,
    PS2KBD,
    APIC,
    DMA,
    IOAPIC,
    HPET,
    PORT92,
    PCKBD,
]
