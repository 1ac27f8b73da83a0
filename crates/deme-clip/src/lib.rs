//! CLIP (Radford et al. 2021, arXiv 2103.00020): a picture and a caption become vectors whose cosine
//! says how well they belong together.
//!
//! [`ClipModel`] is Hugging Face's `CLIPModel` (same names, same folder), [`CaptionTokenizer`] turns
//! captions into token ids, and [`Clip`] is both with the preparation of pictures. [`Clip::open`] reads
//! Hugging Face's folders and open_clip's weights; [`train_tiny_clip`] makes a small one from captioned
//! pictures.
//!
//! Not here: resizing pictures, diffusion, scores over many pictures.

mod byte_pair_vocabulary;
mod caption_cleaning;
mod clip;
mod config;
mod contrastive_loss;
mod encoder;
mod error;
mod html_references;
mod model;
mod open_clip;
mod preprocessor;
mod retrieval;
mod text_model;
mod text_tower;
mod tiny_clip;
mod tokenizer;
mod vision_tower;

pub use clip::{Clip, EMBEDDING_BATCH};
pub use config::{ClipConfig, ClipTextConfig, ClipVisionConfig, HiddenAct};
pub use contrastive_loss::{MAX_LOGIT_SCALE, contrastive_loss};
pub use encoder::{ClipAttention, ClipEncoder, ClipEncoderLayer, ClipMlp};
pub use error::ClipError;
pub use model::{ClipModel, normalise};
pub use open_clip::open_clip_architectures;
pub use preprocessor::{ClipFilter, ClipPreprocessor, ClipResize, CropRounding};
pub use retrieval::RetrievalAccuracy;
pub use text_model::ClipTextModel;
pub use text_tower::{ClipTextEmbeddings, ClipTextTransformer};
pub use tiny_clip::{
    CaptionedImages, TinyClip, TinyClipConfig, TinyClipProgress, TinyClipReport, train_tiny_clip,
};
pub use tokenizer::{
    CaptionCleaning, CaptionTokenizer, END_OF_TEXT, EncodedCaptions, PAD, START_OF_TEXT, UNKNOWN,
};
pub use vision_tower::{ClipVisionEmbeddings, ClipVisionTransformer};
