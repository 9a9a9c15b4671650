//! The `strandline` command: everything is in [`strandline_tools::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    strandline_tools::cli::main()
}
