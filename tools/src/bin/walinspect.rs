//! The `walinspect` command: everything is in [`strandline_tools::inspect`].

use std::process::ExitCode;

fn main() -> ExitCode {
    strandline_tools::inspect::main()
}
