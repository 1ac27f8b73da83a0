//! What is wrong with a plan, said before any work.

use miette::{Diagnostic, NamedSource, SourceSpan};

use crate::diagnostics::Problem;

/// Why a plan cannot be carried out, or was not.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum AblationError {
    /// Neither a file nor a shipped plan.
    #[error("there is no plan {name}")]
    NoSuchPlan {
        /// What was asked for.
        name: String,
        /// The way out.
        #[help]
        help: String,
    },
    /// A file whose ending says nothing.
    #[error("{source_name} is no plan by its name")]
    #[diagnostic(help(
        "call it .toml (our own form), .jsonl or .json (AblationBench's predictions), or .md (its list for people)"
    ))]
    UnknownForm {
        /// The file.
        source_name: String,
    },
    /// TOML that does not parse, or keys that are not known.
    #[error("the plan is wrong: {message}")]
    #[diagnostic(help(
        "an entry is a table [[ablation]] with name, part, action, replacement, metrics and reason"
    ))]
    Toml {
        /// What the parser says.
        message: String,
        /// The plan.
        #[source_code]
        source_code: NamedSource<String>,
        /// Where in it.
        #[label("here")]
        span: Option<SourceSpan>,
    },
    /// JSON that does not parse, or is no object.
    #[error("{place}: this is no JSON object: {reason}")]
    #[diagnostic(help(
        "each line is one object with the fields name, ablated_part, action, replacement and metrics"
    ))]
    Json {
        /// File and line.
        place: String,
        /// What the parser says.
        reason: String,
    },
    /// A file of several papers' plans.
    #[error("{source_name} holds the plans of {}{}", known.join(", "), found.as_ref().map(|id| format!(", not of {id}")).unwrap_or_default())]
    #[diagnostic(help("name one behind the file, as in {source_name}#{}", known.first().map_or("ID", String::as_str)))]
    WhichPaper {
        /// The file.
        source_name: String,
        /// What was asked for.
        found: Option<String>,
        /// The papers it has.
        known: Vec<String>,
    },
    /// An entry lacks something.
    #[error("{place}: there is no {field}")]
    #[diagnostic(help(
        "an entry has a name, an ablated part, an action, and mostly replacements and metrics"
    ))]
    MissingField {
        /// Where the entry stands.
        place: String,
        /// What it lacks.
        field: &'static str,
    },
    /// A plan of nothing.
    #[error("{source_name} holds no ablation")]
    #[diagnostic(help(
        "TOML: a table [[ablation]] each; JSON: one object a line; Markdown: a heading ### and a list with \
         **Ablated Part** and **Action**"
    ))]
    EmptyPlan {
        /// The plan.
        source_name: String,
    },
    /// Two entries of one name.
    #[error("two ablations are called “{name}”")]
    #[diagnostic(help("give each its own name: tables and figures are called by it"))]
    SameName {
        /// The name.
        name: String,
    },
    /// Neither ADD, REMOVE nor REPLACE.
    #[error("“{entry}”: {found} is no action")]
    #[diagnostic(help("the actions are ADD, REMOVE and REPLACE"))]
    UnknownAction {
        /// The entry.
        entry: String,
        /// What it says.
        found: String,
    },
    /// Words that mean no part.
    #[error("“{entry}”: no part of the recipe is “{text}”")]
    #[diagnostic(help(
        "the nearest parts are\n{nearest}\nSay which is meant, as in --bind \"{text}=PART\"; --list-parts shows all"
    ))]
    UnknownPart {
        /// The entry.
        entry: String,
        /// The plan's words.
        text: String,
        /// Ids and titles, a line each.
        nearest: String,
    },
    /// Words that mean several parts.
    #[error("“{entry}”: “{text}” means more than one part")]
    #[diagnostic(help(
        "it names\n{parts}\nSay which is meant, as in --bind \"{text}=PART\", or make two ablations of it"
    ))]
    AmbiguousPart {
        /// The entry.
        entry: String,
        /// The plan's words.
        text: String,
        /// Ids and titles, a line each.
        parts: String,
    },
    /// Words that mean something no recipe can change.
    #[error("“{entry}”: “{text}” cannot be ablated here: {reason}")]
    #[diagnostic(help(
        "--list-parts shows what can be; --bind \"{text}=PART\" says that one of them is meant"
    ))]
    NotHere {
        /// The entry.
        entry: String,
        /// The plan's words.
        text: String,
        /// Why not.
        reason: String,
    },
    /// ADD or REMOVE of what cannot be absent.
    #[error("“{entry}”: {part} can only be REPLACEd: a run always has {title}")]
    #[diagnostic(help("write REPLACE and the replacements: {reads}"))]
    NoSuchAction {
        /// The entry.
        entry: String,
        /// The part's id.
        part: &'static str,
        /// What it is.
        title: &'static str,
        /// How a replacement is read.
        reads: &'static str,
    },
    /// ADD of what is there.
    #[error("“{entry}”: the recipe has {part} already: {current}")]
    #[diagnostic(help("write REMOVE to take it out, or REPLACE to change it"))]
    AlreadyPresent {
        /// The entry.
        entry: String,
        /// The part's id.
        part: &'static str,
        /// What the recipe has.
        current: String,
    },
    /// REMOVE of what is not there.
    #[error("“{entry}”: the recipe has no {part}: {current}")]
    #[diagnostic(help(
        "write ADD to put it in, or put it into the recipe with --set and REMOVE it from there"
    ))]
    AlreadyAbsent {
        /// The entry.
        entry: String,
        /// The part's id.
        part: &'static str,
        /// What the recipe has.
        current: String,
    },
    /// REPLACE by nothing, or ADD of something that must be named.
    #[error("“{entry}”: {} needs a replacement", action)]
    #[diagnostic(help("{part} is read as: {reads}"))]
    EmptyReplacement {
        /// The entry.
        entry: String,
        /// The action.
        action: &'static str,
        /// The part's id.
        part: &'static str,
        /// How a replacement is read.
        reads: &'static str,
    },
    /// REMOVE with replacements.
    #[error("“{entry}”: REMOVE has no replacement, but there is “{text}”")]
    #[diagnostic(help("write REPLACE to exchange the part, or leave the replacement out"))]
    ReplacementForRemove {
        /// The entry.
        entry: String,
        /// The first replacement.
        text: String,
    },
    /// A replacement that makes no sense.
    #[error("“{entry}”: “{text}” is no {part}{}", reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default())]
    #[diagnostic(help(
        "{part} is read as: {reads}. Or say what is meant, as in --bind \"{text}=WORDS\""
    ))]
    UnreadableReplacement {
        /// The entry.
        entry: String,
        /// The part's id.
        part: &'static str,
        /// The plan's words.
        text: String,
        /// Why, where it was understood.
        reason: Option<String>,
        /// How a replacement is read.
        reads: &'static str,
    },
    /// Two parts of a combination that want different rows of a run.
    #[error("“{entry}”: “{text}” asks for two models at once")]
    #[diagnostic(help(
        "ranges, weights, merging and finetuning may each choose the model that is measured: name one"
    ))]
    TwoRows {
        /// The entry.
        entry: String,
        /// The combination.
        text: String,
    },
    /// Two replacements that are the same thing.
    #[error("“{entry}”: “{first}” and “{second}” are the same")]
    #[diagnostic(help("leave one of them out"))]
    SameTwice {
        /// The entry.
        entry: String,
        /// One.
        first: String,
        /// The other.
        second: String,
    },
    /// Every variant is the recipe as it is.
    #[error("“{entry}”: no replacement differs from the recipe, which has {current}")]
    #[diagnostic(help("name another replacement, or change the recipe with --set"))]
    NothingChanges {
        /// The entry.
        entry: String,
        /// What the recipe has.
        current: String,
    },
    /// A variant whose recipe cannot be carried out.
    #[error("“{entry}”, variant “{variant}”: {problem}")]
    ImpossibleVariant {
        /// The entry.
        entry: String,
        /// The variant.
        variant: String,
        /// What is wrong with its recipe.
        problem: Box<Problem>,
        /// The way out.
        #[help]
        help: Option<String>,
    },
    /// A metric that the run does not give.
    #[error("{metric} cannot be measured: this recipe gives {given}")]
    #[diagnostic(help(
        "measure what it gives (--metrics {first}); or let that stand for it, with a note in every table \
         (--bind \"{metric}={first}\"); or leave it out (--bind \"{metric}=none\")"
    ))]
    NoSuchMetric {
        /// The plan's words.
        metric: String,
        /// All that the run gives.
        given: String,
        /// The first of it.
        first: String,
    },
    /// No metric is left.
    #[error("“{entry}”: nothing is left to measure")]
    #[diagnostic(help(
        "bind one of its metrics to something that the run gives, or say --metrics NAME"
    ))]
    NoMetric {
        /// The entry.
        entry: String,
    },
    /// `--bind` without `=`.
    #[error("--bind \"{text}\" has no `=`")]
    #[diagnostic(help("write --bind \"words of the plan=part, replacement or metric\""))]
    BadBind {
        /// What was said.
        text: String,
    },
    /// `--bind` to something unknown.
    #[error("--bind \"{text}={word}\": {word} is no part")]
    #[diagnostic(help("the nearest parts are\n{nearest}"))]
    BindToNothing {
        /// The plan's words.
        text: String,
        /// What they should mean.
        word: String,
        /// Ids and titles, a line each.
        nearest: String,
    },
    /// `--bind` of words that the plan does not have.
    #[error("--bind \"{text}\": the plan does not say that")]
    #[diagnostic(help("bind a part, replacement or metric, word for word"))]
    UnusedBind {
        /// What was said.
        text: String,
    },
    /// Some variants failed; the others are in the table.
    #[error("{failed} of {total} measurements failed; the table shows why, and the others")]
    #[diagnostic(help("the same command tries them again and does nothing else"))]
    VariantsFailed {
        /// How many failed.
        failed: usize,
        /// Of how many.
        total: usize,
    },
    /// Results of another program or version.
    #[error("{place} is not read as results of an ablation or a run: {reason}")]
    #[diagnostic(help("take the file out of the folder, or name another with --results"))]
    BadResults {
        /// The file.
        place: String,
        /// Why.
        reason: String,
    },
    /// Nothing is left to propose.
    #[error("every part of the recipe that is worth an ablation has evidence")]
    #[diagnostic(help("more seeds for what is within noise (deme ablate --seeds) may tell more"))]
    NothingToPropose,
    /// The endpoint of a language model cannot be reached, or refuses.
    #[error("the model at {url} gave no answer: {reason}")]
    #[diagnostic(help(
        "check the address, the model's name and the key in {key_variable}; without --llm the plan is made here"
    ))]
    NoAnswer {
        /// Where.
        url: String,
        /// What happened.
        reason: String,
        /// The environment variable of the key.
        key_variable: String,
    },
    /// The answer of a language model is no plan.
    #[error("the model's answer is no plan for this recipe: {reason}")]
    #[diagnostic(help("this was its answer:\n{answer}\nAsk again, or leave --llm out"))]
    AnswerIsNoPlan {
        /// What is wrong with it.
        reason: String,
        /// The answer.
        answer: String,
    },
}

impl AblationError {
    /// Whether the work failed; otherwise the input was bad.
    pub fn is_failure(&self) -> bool {
        matches!(
            self,
            Self::VariantsFailed { .. } | Self::NoAnswer { .. } | Self::AnswerIsNoPlan { .. }
        )
    }
}
