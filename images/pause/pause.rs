//! The process that holds a pod's namespaces: it waits, reaps what its containers leave behind, and ends when asked.
//!
//! No libc, no standard library: a static binary of a few kilobytes. Built by `make images` with
//! `rustc -O -C panic=abort -C relocation-model=static -C link-args='-nostartfiles -static'`.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

const SYS_RT_SIGACTION: usize = 13;
const SYS_PAUSE: usize = 34;
const SYS_EXIT: usize = 60;
const SYS_WAIT4: usize = 61;
const SIGINT: usize = 2;
const SIGTERM: usize = 15;
const SIGCHLD: usize = 17;
const SA_RESTORER: u64 = 0x0400_0000;
const SA_NOCLDSTOP: u64 = 1;
const WNOHANG: usize = 1;

/// The kernel's own `struct sigaction` on x86-64.
#[repr(C)]
struct Action {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

// The kernel returns from a handler through the restorer, which asks it to (rt_sigreturn, 15).
global_asm!(".globl restore", "restore:", "mov $15, %eax", "syscall", options(att_syntax));
global_asm!(".globl _start", "_start:", "xor %ebp, %ebp", "and $-16, %rsp", "call main", options(att_syntax));

unsafe extern "C" {
    fn restore();
}

fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    // SAFETY: a system call on x86-64; the kernel clobbers rcx and r11 and nothing else.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
             out("rcx") _, out("r11") _, options(nostack));
    }
    result
}

extern "C" fn end(_signal: i32) {
    call(SYS_EXIT, 0, 0, 0, 0);
}

extern "C" fn reap(_signal: i32) {
    while call(SYS_WAIT4, usize::MAX, 0, WNOHANG, 0) > 0 {}
}

fn on(signal: usize, handler: extern "C" fn(i32), flags: u64) {
    let action = Action { handler: handler as usize, flags: flags | SA_RESTORER, restorer: restore as *const () as usize, mask: 0 };
    call(SYS_RT_SIGACTION, signal, &raw const action as usize, 0, 8);
}

#[unsafe(no_mangle)]
extern "C" fn main() -> ! {
    on(SIGINT, end, 0);
    on(SIGTERM, end, 0);
    on(SIGCHLD, reap, SA_NOCLDSTOP);
    loop {
        call(SYS_PAUSE, 0, 0, 0, 0);
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    end(0);
    loop {}
}
