//! The `tollgate` program: see [`cli`].

mod cli;

use std::process::ExitCode;

/// Small allocations on many threads are most of the cost of a request apart from its syscalls.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // With huge pages one used byte costs 2 MB, and the kernel merges freed pages into huge pages again: a process that
    // uses 2 MB grew to 30 MB. If the call fails, the process only uses more memory.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    cli::run()
}
