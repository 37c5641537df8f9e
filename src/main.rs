//! The `tollgate` program: see [`cli`].

mod cli;

use std::process::ExitCode;

/// Small allocations of many threads are most of what a request costs beside its syscalls.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run()
}
