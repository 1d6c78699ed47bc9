//! `outrider-bench`: see `bench/README.md`.

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match outrider_bench::run(&outrider_bench::Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("outrider-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
