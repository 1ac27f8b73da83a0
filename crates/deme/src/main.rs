//! Decouple-then-Merge for diffusion models (Ma et al., CVPR 2025): finetune copies of a pretrained
//! model on their own timestep ranges, merge them in parameter space, and measure what it bought.

#![allow(clippy::result_large_err, reason = "a problem ends the program; its size is of no matter")]

use std::process::ExitCode;

use clap::Parser;

mod cli;
mod commands;
mod diagnostics;
mod progress;
mod recipe;
mod report;
mod run_dir;
mod stages;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    let outcome = match arguments.command {
        cli::Command::Run(arguments) => commands::run::run(&arguments),
        cli::Command::Sample(arguments) => commands::sample::run(&arguments),
        cli::Command::Merge(arguments) => commands::merge::run(&arguments),
        cli::Command::Predict(arguments) => commands::predict::run(&arguments),
        cli::Command::Inspect(arguments) => commands::inspect::run(&arguments),
        cli::Command::Fd(arguments) => commands::fd::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            let code = problem.exit_code();
            eprintln!("{:?}", miette::Report::new(problem));
            ExitCode::from(code)
        }
    }
}
