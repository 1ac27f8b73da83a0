//! Decouple-then-Merge for diffusion models (Ma et al., CVPR 2025): finetune copies of a pretrained
//! model on their own timestep ranges, merge them in parameter space, and measure what it bought.

#![allow(clippy::result_large_err, reason = "a problem ends the program; its size is of no matter")]

use std::process::ExitCode;

use clap::Parser;

mod ablation;
mod cli;
mod commands;
mod diagnostics;
mod extractors;
mod feature_sets;
mod progress;
mod recipe;
mod report;
mod run_dir;
mod stages;

#[global_allocator]
static ALLOCATOR: deme_kernels::Allocator = deme_kernels::Allocator;

fn main() -> ExitCode {
    deme_kernels::keep_freed_memory();
    // Messages name their causes themselves; the chain would say them twice.
    let handler = |_: &_| -> Box<dyn miette::ReportHandler> {
        Box::new(miette::MietteHandlerOpts::new().without_cause_chain().build())
    };
    miette::set_hook(Box::new(handler)).expect("nothing has set a hook before");
    let arguments = cli::Arguments::parse();
    deme_kernels::set_conv_algorithm(match arguments.convolutions {
        cli::ConvolutionName::Fast => deme_kernels::ConvAlgorithm::Fast,
        cli::ConvolutionName::Exact => deme_kernels::ConvAlgorithm::Exact,
    });
    let outcome = match arguments.command {
        cli::Command::Run(arguments) => commands::run::run(&arguments),
        cli::Command::Sample(arguments) => commands::sample::run(&arguments),
        cli::Command::Merge(arguments) => commands::merge::run(&arguments),
        cli::Command::Predict(arguments) => commands::predict::run(&arguments),
        cli::Command::Inspect(arguments) => commands::inspect::run(&arguments),
        cli::Command::Fid(arguments) => commands::fid::run(&arguments),
        cli::Command::ClipScore(arguments) => commands::clip_score::run(&arguments),
        cli::Command::Compare(arguments) => commands::compare::run(&arguments),
        cli::Command::Ablate(arguments) => commands::ablate::run(&arguments),
        cli::Command::Plan(arguments) => commands::plan::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            let (code, out_of_room) = (problem.exit_code(), problem.is_out_of_room());
            eprint!("{:?}", miette::Report::new(problem));
            if out_of_room {
                eprintln!("What was finished is kept. Make room, then run the same command again.");
            }
            ExitCode::from(code)
        }
    }
}
