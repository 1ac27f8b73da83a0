//! Everything in a recipe that can be ablated: one table.
//!
//! A row says what a part is called, what ADD and REMOVE mean for it, and how a replacement's text becomes
//! settings of the recipe. It holds what can really run and nothing else; parts that people name and that
//! cannot run have a table of their own, with the reason.

use crate::recipe::Recipe;

use super::part_readings as readings;
use super::setting::{Current, Reading, Setting, written};

/// A part of the method.
pub struct Part {
    /// Its short name, as plans of our own and `--bind` write it.
    pub id: &'static str,
    /// What it is.
    pub title: &'static str,
    /// The keys of the recipe it stands for.
    pub keys: &'static str,
    /// What people call it: a text names the part when it holds all words of one of these.
    pub phrases: &'static [&'static str],
    /// The same, for texts that name no part better.
    pub weak_phrases: &'static [&'static str],
    /// Parts that this one is an aspect of: a text that names both means this one.
    pub aspect_of: &'static [&'static str],
    /// What ADD and REMOVE mean; none for what cannot be absent.
    pub switch: Option<Switch>,
    /// How a replacement's text is read, in words.
    pub reads: &'static str,
    /// Reads a replacement's text.
    pub read: fn(&Recipe, &str) -> Reading,
    /// Whether a list of numbers is one replacement, not several.
    pub takes_number_lists: bool,
    /// What the recipe has.
    pub current: fn(&Recipe) -> Current,
    /// What is worth comparing, best first.
    pub worth: &'static [&'static str],
    /// What an ablation of it tells, and how much that is worth knowing, from 0 to 10.
    pub tells: (u32, &'static str),
}

/// A part that can be there or not.
pub struct Switch {
    /// Whether the recipe has it.
    pub is_on: fn(&Recipe) -> bool,
    /// What ADD without a replacement puts in, in words.
    pub add_means: &'static str,
    /// The text that ADD without a replacement stands for; none where a replacement must say.
    pub add: Option<&'static str>,
    /// What REMOVE leaves, in words.
    pub remove_means: &'static str,
    /// The settings that REMOVE stands for.
    pub remove: fn(&Recipe) -> Setting,
}

/// The part of that short name.
pub fn part(id: &str) -> Option<&'static Part> {
    PARTS.iter().find(|part| part.id == id)
}

/// The parts.
pub static PARTS: &[Part] = &[
    Part {
        id: "weights",
        title: "how the merging weights w_i are found",
        keys: "merge.weights, merge.search; the row of uniform weights",
        phrases: &[
            "merging weight",
            "weight task vector",
            "weight w_i",
            "w_i",
            "merging coefficient",
            "coefficient task vector",
            "weight search",
            "grid search",
            "weighting expert",
            "weighting task vector",
            "combination weight",
            "mixing weight",
        ],
        weak_phrases: &["uniform weight", "searched weight", "weight expert"],
        aspect_of: &["merging"],
        switch: Some(Switch {
            is_on: |recipe| recipe.merge.weights.is_none(),
            add_means: "a search on a coordinate grid",
            add: Some("coordinate_grid"),
            remove_means: "uniform weights 1/N",
            remove: |_| readings::uniform(),
        }),
        reads: "uniform; grid, coordinate_grid, random, cma_es, quadratic_model or gradient search; \
                or the weights, as in 0.1, 0.1, 0.2, 0.5",
        read: readings::weights,
        takes_number_lists: true,
        current: readings::current_weights,
        worth: &["uniform", "coordinate_grid", "cma_es", "quadratic_model"],
        tells: (10, "whether the search for merging weights is worth its evaluations"),
    },
    Part {
        id: "ranges",
        title: "the number of timestep ranges, N",
        keys: "decouple.ranges, decouple.finetune.iterations (the total stays the recipe's)",
        phrases: &[
            "number range",
            "number timestep range",
            "number interval",
            "number expert",
            "number segment",
            "number partition",
            "many range",
            "many expert",
            "range n",
            "range count",
            "n used decouple",
        ],
        weak_phrases: &[
            "timestep range",
            "timestep interval",
            "timestep decouple",
            "decouple training",
            "decouple stage",
            "decouple",
        ],
        aspect_of: &[],
        switch: Some(Switch {
            is_on: |recipe| recipe.decouple.ranges > 1,
            add_means: "N = 4, the paper's choice",
            add: Some("4"),
            remove_means: "no DeMe: joint finetuning with the same total of iterations",
            remove: readings::no_ranges,
        }),
        reads: "a whole number, as in 4 or N = 4",
        read: readings::ranges,
        takes_number_lists: false,
        current: |recipe| {
            let n = recipe.decouple.ranges;
            Current::number(format!("N = {n}"), n as f64)
        },
        worth: &["2", "4", "8"],
        tells: (9, "whether more ranges help at the same total of iterations"),
    },
    Part {
        id: "techniques",
        title: "which techniques are combined",
        keys: "those of the parts that a replacement names",
        phrases: &["technique", "combination technique", "combination component"],
        weak_phrases: &["component"],
        aspect_of: &[],
        switch: None,
        reads: "a table of parts, as in { ranges = 8, consistency_loss = \"off\", projection = \"on\" }",
        read: readings::techniques,
        takes_number_lists: false,
        current: |_| Current::text("all techniques of the recipe"),
        worth: &[],
        tells: (0, "what each technique adds"),
    },
    Part {
        id: "projection",
        title: "the channel-wise projection and its placement",
        keys: "decouple.finetune.projection",
        phrases: &["projection", "channel projection"],
        weak_phrases: &[],
        aspect_of: &[],
        switch: Some(Switch {
            is_on: |recipe| !recipe.decouple.finetune.projection.is_none(),
            add_means: "folded projections",
            add: Some("folded"),
            remove_means: "no projection",
            remove: |_| readings::projection_of("none"),
        }),
        reads: "none, block (the paper's placement) or folded",
        read: readings::projection,
        takes_number_lists: false,
        current: |recipe| Current::text(readings::snake_name(&recipe.decouple.finetune.projection)),
        worth: &["none", "block", "folded"],
        tells: (8, "what the projection adds, and whether folding it costs anything"),
    },
    Part {
        id: "consistency_loss",
        title: "the consistency loss and its weight",
        keys: "decouple.finetune.consistency_weight",
        phrases: &["consistency loss", "consistency", "consistency regularization"],
        weak_phrases: &["teacher"],
        aspect_of: &[],
        switch: Some(Switch {
            is_on: |recipe| recipe.decouple.finetune.consistency_weight > 0.0,
            add_means: "weight 1, as in the paper",
            add: Some("1"),
            remove_means: "weight 0",
            remove: |_| readings::consistency_of(0.0),
        }),
        reads: "its weight, as in 0.5; on or off",
        read: readings::consistency,
        takes_number_lists: false,
        current: |recipe| {
            let weight = recipe.decouple.finetune.consistency_weight;
            Current::number(format!("weight {}", written(weight)), weight)
        },
        worth: &["0", "0.5", "2"],
        tells: (8, "whether staying near the pretrained model helps the experts to merge"),
    },
    Part {
        id: "probability",
        title: "probabilistic sampling: the probability p of drawing from all timesteps",
        keys: "decouple.finetune.timestep_sampling.probability",
        phrases: &[
            "probabilistic sampling",
            "probabilistic timestep",
            "probability p",
            "sampling probability",
            "probability sampling",
            "probability draw",
            "timestep sampling",
        ],
        weak_phrases: &["probability", "probabilistic"],
        aspect_of: &[],
        switch: Some(Switch {
            is_on: |recipe| recipe.decouple.finetune.timestep_sampling.probability > 0.0,
            add_means: "p = 0.3, as in the paper",
            add: Some("0.3"),
            remove_means: "p = 0: each expert sees its own range only",
            remove: |_| readings::probability_of(0.0),
        }),
        reads: "a number from 0 to 1, as in 0.3, p = 0.3 or 30%; on or off",
        read: readings::probability,
        takes_number_lists: false,
        current: |recipe| {
            let p = recipe.decouple.finetune.timestep_sampling.probability;
            Current::number(format!("p = {}", written(p)), p)
        },
        worth: &["0", "0.1", "0.3", "0.5", "1"],
        tells: (7, "how much of the other ranges an expert must see"),
    },
    Part {
        id: "merging",
        title: "merging the experts into one model",
        keys: "the rows of the ensemble, of uniform weights and of single experts",
        phrases: &[
            "merging expert",
            "merging model",
            "merging stage",
            "merging step",
            "merging finetuning",
            "merging parameter",
            "merging vs ensemble",
            "model ensemble",
            "ensemble",
        ],
        weak_phrases: &["merging"],
        aspect_of: &[],
        switch: Some(Switch {
            is_on: |_| true,
            add_means: "the merged model",
            add: None,
            remove_means: "the experts as an ensemble, each at the timesteps of its range",
            remove: |_| readings::ensemble(),
        }),
        reads: "ensemble, uniform, expert 2 (one expert alone)",
        read: readings::merging,
        takes_number_lists: false,
        current: |_| Current::text("merged"),
        worth: &["ensemble", "uniform"],
        tells: (6, "what merging costs or gains against one expert for each range"),
    },
    Part {
        id: "objective",
        title: "what the search for merging weights makes small",
        keys: "merge.objective",
        phrases: &[
            "search objective",
            "objective weight",
            "search criterion",
            "criterion weight",
            "metric merging weight",
            "search metric",
        ],
        weak_phrases: &["objective"],
        aspect_of: &["weights", "merging"],
        switch: None,
        reads: "loss, frechet or loss-then-frechet",
        read: readings::objective,
        takes_number_lists: false,
        current: readings::current_objective,
        worth: &["loss", "frechet", "loss-then-frechet"],
        tells: (5, "whether the cheap loss finds weights as good as the distance does"),
    },
    Part {
        id: "groups",
        title: "which tensors have merging weights of their own",
        keys: "merge.groups",
        phrases: &[
            "weight per part",
            "weight per block",
            "weight per layer",
            "weight per group",
            "blockwise weight",
            "layerwise weight",
            "layer wise weight",
            "block wise weight",
            "weight group",
            "parameter group",
            "merging granularity",
        ],
        weak_phrases: &["group"],
        aspect_of: &["weights", "merging"],
        switch: Some(Switch {
            is_on: |recipe| recipe.merge.groups != deme_merge::ParameterGroups::One,
            add_means: "weights per part of the UNet",
            add: Some("parts"),
            remove_means: "one weight per expert",
            remove: |_| readings::groups_of("one"),
        }),
        reads: "one, parts or blocks",
        read: readings::groups,
        takes_number_lists: false,
        current: |recipe| Current::text(readings::snake_name(&recipe.merge.groups)),
        worth: &["parts", "blocks"],
        tells: (4, "whether parts of the network want other weights"),
    },
    Part {
        id: "draws",
        title: "whether own range or all timesteps is decided per batch or per sample",
        keys: "decouple.finetune.timestep_sampling.granularity",
        phrases: &["per batch", "per sample", "draw batch", "draw sample", "sampling granularity"],
        weak_phrases: &["granularity"],
        aspect_of: &["probability"],
        switch: None,
        reads: "batch or sample",
        read: readings::draws,
        takes_number_lists: false,
        current: |recipe| {
            let granularity = recipe.decouple.finetune.timestep_sampling.granularity;
            Current::text(format!("per {}", readings::snake_name(&granularity)))
        },
        worth: &["batch", "sample"],
        tells: (4, "which of the two readings of the paper's sampling is the better one"),
    },
    Part {
        id: "antithetic",
        title: "antithetic timesteps: half of a batch mirrors the other",
        keys: "decouple.finetune.timestep_sampling.antithetic",
        phrases: &["antithetic", "mirrored timestep"],
        weak_phrases: &[],
        aspect_of: &["probability"],
        switch: Some(Switch {
            is_on: |recipe| recipe.decouple.finetune.timestep_sampling.antithetic,
            add_means: "antithetic timesteps",
            add: Some("on"),
            remove_means: "independent timesteps",
            remove: |_| readings::antithetic_of(false),
        }),
        reads: "on or off",
        read: readings::antithetic,
        takes_number_lists: false,
        current: |recipe| {
            readings::current_switch(recipe.decouple.finetune.timestep_sampling.antithetic)
        },
        worth: &["on", "off"],
        tells: (3, "whether mirrored timesteps make the gradients steadier"),
    },
    Part {
        id: "ema",
        title: "the moving average of an expert's weights",
        keys: "decouple.finetune.ema",
        phrases: &["ema", "moving average", "weight averaging training"],
        weak_phrases: &[],
        aspect_of: &[],
        switch: Some(Switch {
            is_on: |recipe| recipe.decouple.finetune.ema.enabled,
            add_means: "the average with the recipe's decay",
            add: Some("on"),
            remove_means: "the last weights",
            remove: |_| readings::ema_of(false),
        }),
        reads: "on, off, or the highest decay, as in 0.999",
        read: readings::ema,
        takes_number_lists: false,
        current: |recipe| {
            let ema = &recipe.decouple.finetune.ema;
            match ema.enabled {
                true => Current::number(format!("decay {}", written(ema.max_decay)), ema.max_decay),
                false => Current::text("off"),
            }
        },
        worth: &["off", "0.99", "0.9999"],
        tells: (5, "whether the experts need averaging before they are merged"),
    },
    Part {
        id: "loss_weighting",
        title: "the weighting of the diffusion loss over timesteps",
        keys: "decouple.finetune.loss_weighting",
        phrases: &[
            "loss weighting",
            "snr weighting",
            "snr",
            "min snr",
            "p2",
            "timestep weighting",
            "weighting diffusion loss",
        ],
        weak_phrases: &["weighting"],
        aspect_of: &[],
        switch: Some(Switch {
            is_on: |recipe| {
                recipe.decouple.finetune.loss_weighting != deme_decouple::LossWeighting::Uniform
            },
            add_means: "a replacement says which",
            add: None,
            remove_means: "weight 1 for every timestep",
            remove: |_| readings::weighting_of("uniform"),
        }),
        reads: "uniform, SNR+1, truncated SNR, Min-SNR-5 or P2",
        read: readings::weighting,
        takes_number_lists: false,
        current: |recipe| {
            let weighting = serde_json::to_value(recipe.decouple.finetune.loss_weighting);
            let kind = weighting.ok().and_then(|w| Some(w["kind"].as_str()?.to_owned()));
            Current::text(kind.unwrap_or_default())
        },
        worth: &["min_snr_gamma", "p2"],
        tells: (4, "whether a weighting does inside of a range what ranges do between them"),
    },
    Part {
        id: "iterations",
        title: "finetuning iterations per range",
        keys: "decouple.finetune.iterations",
        phrases: &[
            "finetuning iteration",
            "iteration per range",
            "number iteration",
            "number iteration expert",
            "number iteration range",
            "number step expert",
            "number step range",
            "training iteration",
            "finetuning step",
            "training step",
            "finetuning length",
            "finetuning budget",
            "training length",
        ],
        weak_phrases: &["iteration"],
        aspect_of: &["finetuning"],
        switch: None,
        reads: "a whole number, as in 20000 or 20K",
        read: readings::iterations,
        takes_number_lists: false,
        current: |recipe| {
            let iterations = recipe.decouple.finetune.iterations;
            Current::number(format!("{iterations} iterations"), iterations as f64)
        },
        worth: &["half", "double"],
        tells: (5, "whether the experts were trained long enough"),
    },
    Part {
        id: "learning_rate",
        title: "the learning rate of finetuning",
        keys: "decouple.finetune.learning_rate",
        phrases: &["learning rate", "lr"],
        weak_phrases: &[],
        aspect_of: &[],
        switch: None,
        reads: "a number, as in 5e-5; half or double",
        read: readings::learning_rate,
        takes_number_lists: false,
        current: |recipe| {
            let rate = recipe.decouple.finetune.learning_rate;
            Current::number(format!("rate {}", written(rate)), rate)
        },
        worth: &["half", "double"],
        tells: (5, "whether the comparison hangs on a rate that suits one side"),
    },
    Part {
        id: "lr_schedule",
        title: "the course of the learning rate",
        keys: "decouple.finetune.lr_schedule.kind",
        phrases: &[
            "learning rate schedule",
            "lr schedule",
            "learning rate decay",
            "cosine schedule",
        ],
        weak_phrases: &[],
        aspect_of: &["learning_rate"],
        switch: None,
        reads: "constant, cosine or linear",
        read: readings::lr_schedule,
        takes_number_lists: false,
        current: |recipe| {
            Current::text(readings::snake_name(&recipe.decouple.finetune.lr_schedule.kind))
        },
        worth: &["constant", "cosine"],
        tells: (2, "whether a falling rate gives better experts"),
    },
    Part {
        id: "batch_size",
        title: "pictures per step of finetuning",
        keys: "decouple.finetune.batch_size",
        phrases: &["batch size"],
        weak_phrases: &[],
        aspect_of: &[],
        switch: None,
        reads: "a whole number; half or double",
        read: readings::batch_size,
        takes_number_lists: false,
        current: |recipe| {
            let size = recipe.decouple.finetune.batch_size;
            Current::number(format!("batch {size}"), size as f64)
        },
        worth: &["half", "double"],
        tells: (2, "whether the experts' gradients are too noisy"),
    },
    Part {
        id: "gradient_clipping",
        title: "gradient clipping",
        keys: "decouple.finetune.max_grad_norm",
        phrases: &["gradient clipping", "clipping norm", "gradient norm", "clipping"],
        weak_phrases: &[],
        aspect_of: &[],
        switch: Some(Switch {
            is_on: |recipe| recipe.decouple.finetune.max_grad_norm > 0.0,
            add_means: "norm 1, as in the paper's code",
            add: Some("1"),
            remove_means: "no clipping",
            remove: |_| readings::clipping_of(0.0),
        }),
        reads: "the norm, as in 1; off",
        read: readings::clipping,
        takes_number_lists: false,
        current: |recipe| {
            let norm = recipe.decouple.finetune.max_grad_norm;
            Current::number(format!("norm {}", written(norm)), norm)
        },
        worth: &["off"],
        tells: (1, "whether clipping matters at this size"),
    },
    Part {
        id: "weight_decay",
        title: "weight decay",
        keys: "decouple.finetune.optimizer.weight_decay",
        phrases: &["weight decay"],
        weak_phrases: &[],
        aspect_of: &[],
        switch: Some(Switch {
            is_on: |recipe| recipe.decouple.finetune.optimizer.weight_decay > 0.0,
            add_means: "1e-6, as in the paper's code",
            add: Some("1e-6"),
            remove_means: "no decay",
            remove: |_| readings::decay_of(0.0),
        }),
        reads: "a number, as in 1e-6; off",
        read: readings::weight_decay,
        takes_number_lists: false,
        current: |recipe| {
            let decay = recipe.decouple.finetune.optimizer.weight_decay;
            Current::number(format!("decay {}", written(decay)), decay)
        },
        worth: &["off"],
        tells: (1, "whether decay matters at this size"),
    },
    Part {
        id: "flip",
        title: "mirroring training pictures left to right",
        keys: "decouple.finetune.horizontal_flip",
        phrases: &["horizontal flip", "flip", "augmentation", "mirroring picture"],
        weak_phrases: &[],
        aspect_of: &[],
        switch: Some(Switch {
            is_on: |recipe| recipe.decouple.finetune.horizontal_flip,
            add_means: "mirrored with probability 1/2",
            add: Some("on"),
            remove_means: "pictures as they are",
            remove: |_| readings::flip_of(false),
        }),
        reads: "on or off",
        read: readings::flip,
        takes_number_lists: false,
        current: |recipe| readings::current_switch(recipe.decouple.finetune.horizontal_flip),
        worth: &["on", "off"],
        tells: (2, "whether the experts see too few pictures"),
    },
    Part {
        id: "pretrained",
        title: "the pretrained model that the experts start from",
        keys: "pretrained.from",
        phrases: &["initialisation", "starting model", "start from", "backbone"],
        weak_phrases: &["pretrained", "base model"],
        aspect_of: &[],
        switch: None,
        reads: "a diffusers folder, or hub:owner/name",
        read: readings::pretrained,
        takes_number_lists: false,
        current: |recipe| Current::text(&recipe.pretrained.from),
        worth: &[],
        tells: (1, "whether the gain hangs on the model that one starts from"),
    },
    Part {
        id: "pretraining",
        title: "iterations of pretraining from scratch",
        keys: "pretrained.training.iterations",
        phrases: &[
            "pretraining iteration",
            "pretraining length",
            "pretraining step",
            "pretraining",
            "pretrained iteration",
        ],
        weak_phrases: &[],
        aspect_of: &["pretrained", "iterations"],
        switch: None,
        reads: "a whole number; half or double",
        read: readings::pretraining,
        takes_number_lists: false,
        current: |recipe| match &recipe.pretrained.training {
            Some(training) => {
                let iterations = training.iterations;
                Current::number(format!("{iterations} iterations"), iterations as f64)
            }
            None => Current::text("a given model"),
        },
        worth: &["half"],
        tells: (3, "whether DeMe repairs what more pretraining would"),
    },
    Part {
        id: "sampler",
        title: "the sampler of the evaluation",
        keys: "sampling.sampler.kind",
        phrases: &["sampler", "sampling method", "sampling algorithm", "solver"],
        weak_phrases: &["ddim", "ddpm"],
        aspect_of: &[],
        switch: None,
        reads: "the name of a sampler of the recipe, as in ddim",
        read: readings::sampler,
        takes_number_lists: false,
        current: |recipe| Current::text(readings::snake_name(&recipe.sampling.sampler.kind)),
        worth: &["ddim", "ddpm"],
        tells: (3, "whether the gain survives another sampler"),
    },
    Part {
        id: "steps",
        title: "the sampler's number of steps",
        keys: "sampling.sampler.steps",
        phrases: &[
            "sampling step",
            "sampler step",
            "ddim step",
            "denoising step",
            "inference step",
            "number step sampling",
            "number timestep sampling",
        ],
        weak_phrases: &["number step"],
        aspect_of: &["sampler"],
        switch: None,
        reads: "a whole number, as in 50; half or double",
        read: readings::steps,
        takes_number_lists: false,
        current: |recipe| {
            let steps = recipe.sampling.sampler.steps;
            Current::number(format!("{steps} steps"), steps as f64)
        },
        worth: &["half", "double"],
        tells: (4, "whether the gain survives more steps, or only makes up for few"),
    },
    Part {
        id: "eta",
        title: "DDIM's eta: how much noise the sampler adds",
        keys: "sampling.sampler.eta",
        phrases: &["eta", "sampler noise", "stochasticity"],
        weak_phrases: &[],
        aspect_of: &["sampler"],
        switch: Some(Switch {
            is_on: |recipe| recipe.sampling.sampler.eta > 0.0,
            add_means: "eta = 1",
            add: Some("1"),
            remove_means: "eta = 0",
            remove: |_| readings::eta_of(0.0),
        }),
        reads: "a number from 0 to 1",
        read: readings::eta,
        takes_number_lists: false,
        current: |recipe| {
            let eta = recipe.sampling.sampler.eta;
            Current::number(format!("eta = {}", written(eta)), eta)
        },
        worth: &["1"],
        tells: (1, "whether added noise hides the difference"),
    },
    Part {
        id: "guidance",
        title: "the weight of classifier-free guidance",
        keys: "sampling.guidance.scale (text to image only)",
        phrases: &[
            "guidance",
            "guidance scale",
            "guidance weight",
            "guidance strength",
            "classifier free guidance",
            "cfg",
        ],
        weak_phrases: &["prompt adherence"],
        aspect_of: &["sampler"],
        switch: Some(Switch {
            is_on: |recipe| readings::guidance_scale(recipe) != 1.0,
            add_means: "scale 7.5, Stable Diffusion's usual one",
            add: Some("7.5"),
            remove_means: "scale 1: the prediction under the prompt as it is",
            remove: |_| readings::guidance_of(1.0),
        }),
        reads: "the scale, as in 3 or 7.5; off (scale 1), half or double",
        read: readings::guidance,
        takes_number_lists: false,
        current: |recipe| {
            let scale = readings::guidance_scale(recipe);
            Current::number(format!("guidance {}", written(scale)), scale)
        },
        worth: &["off", "half", "double"],
        tells: (5, "whether the gain hangs on how strongly the prompt guides"),
    },
    Part {
        id: "caption_dropout",
        title: "the share of captions that finetuning leaves out",
        keys: "decouple.finetune.caption_dropout (text to image only)",
        phrases: &[
            "caption dropout",
            "prompt dropout",
            "text dropout",
            "condition dropout",
            "conditioning dropout",
            "dropping caption",
            "dropping prompt",
            "unconditional training",
            "empty caption",
            "empty prompt",
            "null caption",
            "null prompt",
        ],
        weak_phrases: &["dropout"],
        aspect_of: &["guidance"],
        switch: Some(Switch {
            is_on: |recipe| readings::caption_dropout_share(recipe) > 0.0,
            add_means: "one caption in ten",
            add: Some("0.1"),
            remove_means: "every picture has its caption",
            remove: |_| readings::caption_dropout_of(0.0),
        }),
        reads: "a number from 0 to 1, as in 0.1 or 10%; on or off",
        read: readings::caption_dropout,
        takes_number_lists: false,
        current: |recipe| {
            let share = readings::caption_dropout_share(recipe);
            Current::number(format!("caption dropout {}", written(share)), share)
        },
        worth: &["off", "0.1", "0.2"],
        tells: (3, "whether the experts must see pictures without captions for guidance to work"),
    },
    Part {
        id: "finetuning",
        title: "finetuning at all",
        keys: "the row before finetuning",
        phrases: &["finetuning stage", "all finetuning", "finetuning at all"],
        weak_phrases: &["finetuning"],
        aspect_of: &[],
        switch: Some(Switch {
            is_on: |_| true,
            add_means: "finetuning",
            add: None,
            remove_means: "the pretrained model",
            remove: |_| readings::before(),
        }),
        reads: "before (the pretrained model) or joint (one model on all timesteps)",
        read: readings::finetuning,
        takes_number_lists: false,
        current: |_| Current::text("decoupled and merged"),
        worth: &["before", "joint"],
        tells: (
            7,
            "whether DeMe beats the pretrained model, and the same iterations spent on one model",
        ),
    },
];

/// What people name that no recipe can change, and why: words that a text must all hold.
pub static NOT_HERE: &[(&[&str], &str)] = &[
    (
        &[
            "partition",
            "non uniform",
            "nonuniform",
            "unequal",
            "snr range",
            "range width",
            "range boundary",
        ],
        "a recipe cuts the timesteps into ranges of equal length only",
    ),
    (
        &[
            "merging method",
            "merging algorithm",
            "merging operator",
            "tie",
            "dare",
            "slerp",
            "fisher",
            "regmean",
        ],
        "a recipe merges by theta + sum_i w_i tau_i only; other methods are `deme merge`'s (--list-methods)",
    ),
    (&["optimizer", "optimiser", "adam", "adamw", "sgd"], "a recipe trains with AdamW only"),
    (&["ant", "nashmtl", "uncertainty weighting", "multi task"], "ANT's baselines are not here"),
    (
        &["training objective", "training loss"],
        "of the training objective, consistency_loss and loss_weighting are parts",
    ),
    (&["lora", "adapter"], "experts are finetuned whole"),
    (
        &["dataset", "training data", "data set", "split", "resolution"],
        "all variants have the same pictures; give another recipe to compare data",
    ),
    (
        &["architecture", "unet", "transformer", "attention"],
        "all variants have the pretrained network",
    ),
    (&["seed"], "seeds are repetitions, not variants: --seeds K"),
    (
        &["prompt", "caption"],
        "all variants draw for the same captions; give another recipe to compare captions",
    ),
    (
        &["text encoder", "tokenizer"],
        "all variants have the text encoder of the recipe; give another recipe to compare encoders",
    ),
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::part_matching::{plain_words, words_of_phrase};
    use super::*;

    #[test]
    fn every_row_can_be_told_from_the_others_and_its_words_are_plain() {
        for (place, part) in PARTS.iter().enumerate() {
            assert!(PARTS[..place].iter().all(|other| other.id != part.id), "{}", part.id);
            for phrase in part.phrases.iter().chain(part.weak_phrases) {
                // A word that normalisation changes would never be found.
                assert_eq!(words_of_phrase(phrase), plain_words(phrase), "{}: {phrase}", part.id);
            }
            for id in part.aspect_of {
                assert!(super::part(id).is_some_and(|other| other.id != part.id), "{id}");
            }
        }
        for phrase in NOT_HERE.iter().flat_map(|(phrases, _)| phrases.iter()) {
            assert_eq!(words_of_phrase(phrase), plain_words(phrase), "{phrase}");
        }
    }

    #[test]
    fn what_is_worth_comparing_can_be_read_and_what_add_stands_for_too() {
        let recipe = Recipe::load(None, &[]).unwrap();
        for part in PARTS {
            let add = part.switch.as_ref().and_then(|switch| switch.add);
            for text in part.worth.iter().copied().chain(add) {
                assert!((part.read)(&recipe, text).is_ok(), "{}: {text}", part.id);
            }
            assert!((part.read)(&recipe, "a banana").is_err(), "{}", part.id);
        }
    }

    /// Parts that a recipe of pictures without captions, as the embedded one, cannot set.
    const OF_TEXT_TO_IMAGE: [&str; 2] = ["guidance", "caption_dropout"];

    #[test]
    fn parts_of_text_to_image_are_refused_by_recipes_without_captions() {
        for id in OF_TEXT_TO_IMAGE {
            let part = part(id).unwrap();
            let add = part.switch.as_ref().unwrap().add.unwrap();
            let setting = (part.read)(&Recipe::load(None, &[]).unwrap(), add).unwrap();
            let refused = Recipe::load(None, &setting.overrides);
            assert!(refused.is_err(), "{id}: {:?}", setting.overrides);
        }
    }

    #[test]
    fn every_setting_is_a_recipe_of_its_own_and_removing_leaves_nothing_to_remove() {
        let base = Recipe::load(None, &[]).unwrap();
        for part in PARTS.iter().filter(|part| !OF_TEXT_TO_IMAGE.contains(&part.id)) {
            for text in part.worth {
                let setting = (part.read)(&base, text).unwrap();
                let recipe = Recipe::load(None, &setting.overrides);
                assert!(recipe.is_ok(), "{} {text}: {:?}", part.id, recipe.err());
            }
            let Some(switch) = &part.switch else { continue };
            let removed = (switch.remove)(&base);
            let recipe = Recipe::load(None, &removed.overrides).unwrap();
            assert!(!(switch.is_on)(&recipe) || removed.row.is_some(), "{}", part.id);
        }
    }
}
