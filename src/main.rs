//! The `tollgate` program: see [`cli`].

mod cli;

use std::process::ExitCode;

/// Small allocations of many threads are most of what a request costs beside its syscalls.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // One byte in a huge page takes two megabytes, and the kernel joins pages that were given back into whole ones again:
    // of a process that uses 2 MB it made 30. Where it cannot be told so, more memory is taken and nothing else changes.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    cli::run()
}
