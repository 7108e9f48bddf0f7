//! From words to what the transformer is told: tokenizers, CLIP, T5, and what was kept of their answers.

use std::sync::{Arc, OnceLock};

use tensor::{Backend, Precision, Tensor, cpu::Level};

use crate::{
    error::{Error, Result},
    lora::{Lora, LoraReport, Loras, Model},
    memory::Stream,
    model::{ModelFiles, Part, Tokenizer},
    options::LoadOptions,
    plan::Plan,
    prompt_cache::{Embeddings, Key, PromptCache},
    safety::Screened,
    text::{
        clip::Clip,
        t5::T5,
        tokenizer::{ClipTokenizer, T5Tokenizer},
    },
    transformer::{Condition, Rope},
    watch::{self, Event, Watch},
};

/// What the text encoders say about a prompt.
pub(crate) struct Conditioning {
    /// `[t5 length, width]`.
    pub(crate) txt: Tensor,
    /// `[1, width]`.
    pub(crate) pooled: Tensor,
}

impl Conditioning {
    pub(crate) fn with<'a>(&'a self, guidance_argument: f32, rope: &'a Rope) -> Condition<'a> {
        Condition { txt: &self.txt, pooled: &self.pooled, guidance_argument, rope }
    }
}

/// A model's text encoders.
#[derive(Debug)]
pub(crate) struct PromptReader {
    backend: Arc<dyn Backend>,
    precision: Precision,
    clip_tokenizer: Tokenizer<ClipTokenizer>,
    t5_tokenizer: Tokenizer<T5Tokenizer>,
    clip: Clip,
    t5: T5,
    cache: Option<PromptCache>,
    /// Where the weights of CLIP and T5 come from.
    parts: [Part; 2],
    /// LoRAs that change them, with their weights, and whether they are merged.
    loras: (Vec<(Arc<Lora>, f32)>, bool),
    /// What all answers depend on beside the tokens; known when the first is asked for.
    key: OnceLock<Key>,
}

impl PromptReader {
    pub(crate) fn load(
        files: &ModelFiles,
        options: &LoadOptions,
        backend: &Arc<dyn Backend>,
        precision: Precision,
        watch: &mut dyn Watch,
    ) -> Result<Self> {
        watch.event(Event::Loading("clip_l"));
        let clip_tokenizer = files.load_clip_tokenizer()?;
        let mut clip_config = files.clip_l.clip_config()?;
        if files.clip_l.config.is_none() {
            clip_config.eos_token_id = clip_tokenizer.eos(); // weights alone do not tell
        }
        let clip = Clip::load(clip_config, &files.clip_l.weights(backend, precision))?;

        watch.event(Event::Loading("t5"));
        let t5_tokenizer = files.load_t5_tokenizer()?;
        let t5 = T5::load(files.t5.t5_config()?, &files.t5.weights(backend, precision))?;
        Ok(Self {
            backend: backend.clone(),
            precision,
            clip_tokenizer,
            t5_tokenizer,
            clip,
            t5,
            cache: options.prompt_cache.clone(),
            parts: [files.clip_l.clone(), files.t5.clone()],
            loras: (Vec::new(), false),
            key: OnceLock::new(),
        })
    }

    /// Gives back the memory of all weights.
    pub(crate) fn release(&self) {
        self.clip.layout().release();
        self.t5.layout().release();
    }

    /// Width of T5's states.
    pub(crate) fn txt_width(&self) -> usize {
        self.t5.config().d_model
    }

    /// Width of CLIP's pooled state.
    pub(crate) fn pooled_width(&self) -> usize {
        self.clip.config().hidden_size
    }

    /// How many T5 tokens a text takes in full, end token included.
    pub(crate) fn t5_tokens(&self, text: &Screened<&str>) -> Result<usize> {
        self.t5_tokenizer.count(text)
    }

    /// CLIP and T5, for LoRAs to change.
    pub(crate) fn adaptable(&mut self) -> [Model<'_>; 2] {
        [self.clip.adaptable(), self.t5.adaptable()]
    }

    /// Told after LoRAs were applied, with what became of each.
    pub(crate) fn set_loras(&mut self, loras: &Loras, reports: &[LoraReport]) {
        let changing = loras.used.iter().zip(reports).filter(|(_, report)| report.changes_text());
        self.loras = (changing.map(|(lora, _)| lora.clone()).collect(), loras.merge);
        self.key = OnceLock::new();
    }

    /// What the encoders say of a prompt, in `t5_length` tokens.
    pub(crate) fn read(
        &self,
        prompt: &Screened<&str>,
        t5_length: usize,
        plan: &Plan,
        watch: &mut dyn Watch,
    ) -> Result<Conditioning> {
        let longest = self.clip.config().max_position_embeddings;
        let clip_length = self.clip_tokenizer.model_max_length().map_or(longest, |length| length.min(longest));
        if clip_length < 2 {
            let problem = format!("allows {clip_length} tokens; a prompt takes two and more");
            return Err(Error::asked("clip_tokenizer", problem));
        }
        let clip_ids = self.clip_tokenizer.encode(prompt, clip_length)?;
        let t5_ids = self.t5_tokenizer.encode(prompt, t5_length)?;
        check_ids("CLIP", &clip_ids, self.clip.config().vocab_size)?;
        check_ids("T5", &t5_ids, self.t5.config().vocab_size)?;
        let cache = self.cache().map(|cache| {
            let mut key = self.key.get_or_init(|| self.key_of_encoders()).clone();
            key.ids(&clip_ids);
            key.ids(&t5_ids);
            (cache, key)
        });
        if let Some(found) = cache.as_ref().and_then(|(cache, key)| cache.get(key)) {
            let [txt, pooled] = [[t5_length, self.txt_width()], [1, self.pooled_width()]];
            if (found.txt.0, found.pooled.0) == (txt, pooled) {
                watch.event(Event::PromptKnown);
                let tensor = |(shape, values): ([usize; 2], _)| Tensor::from_vec(&self.backend, shape, values);
                return Ok(Conditioning { txt: tensor(found.txt), pooled: tensor(found.pooled) });
            }
        }
        let pooled = self.clip.forward(&self.backend, &clip_ids).pooled;
        self.clip.layout().release();
        self.backend.release_idle();
        let stream = Stream::new(self.t5.layout(), plan.residency("t5"));
        stream.begin();
        let txt = self.t5.forward(&self.backend, &t5_ids, &mut |block, _| {
            stream.done(block);
            watch::check(watch)
        })?;
        if let Some((cache, key)) = &cache {
            let values = |x: &Tensor| ([x.shape()[0], x.shape()[1]], x.to_vec());
            cache.put(key, &Embeddings { txt: values(&txt), pooled: values(&pooled) });
        }
        Ok(Conditioning { txt, pooled })
    }

    /// The cache, if there is one and T5 is large enough to pay for a file.
    fn cache(&self) -> Option<&PromptCache> {
        /// Bytes of weights: a smaller T5 takes about as long as reading what it said.
        const WORTH_KEEPING: u64 = 50_000_000;
        self.cache.as_ref().filter(|_| self.t5.layout().bytes() >= WORTH_KEEPING)
    }

    /// What answers depend on beside the tokens.
    fn key_of_encoders(&self) -> Key {
        let mut key = Key::new();
        key.text(&format!("{} {:?} {}", self.backend.name(), Level::best(), self.precision));
        key.text(&format!("{:?} {:?}", self.clip.config(), self.t5.config()));
        for part in &self.parts {
            key.text(&format!("{:?}", part.detected));
            part.checkpoint.files().iter().for_each(|file| key.file(file));
        }
        let (loras, merge) = &self.loras;
        for (lora, weight) in loras {
            key.text(&format!("lora {weight} {merge}"));
            lora.files().iter().for_each(|file| key.file(file));
        }
        key
    }
}

fn check_ids(encoder: &str, ids: &[u32], vocab_size: usize) -> Result<()> {
    match ids.iter().find(|id| **id as usize >= vocab_size) {
        None => Ok(()),
        Some(id) => Err(Error::asked(
            "tokenizer",
            format!(
                "gives token {id}, but {encoder} knows {vocab_size}: tokenizer and text encoder do not belong together"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ModelSpec, SearchPaths};

    /// A LoRA file of one tensor pair in f32, for a layer of this name.
    fn lora(folder: &std::path::Path, layer: &str, [out, features]: [usize; 2]) -> Arc<Lora> {
        let (down, up) = (4 * features, 4 * out);
        let header = format!(
            r#"{{"{layer}.lora_down.weight":{{"dtype":"F32","shape":[1,{features}],"data_offsets":[0,{down}]}},"{layer}.lora_up.weight":{{"dtype":"F32","shape":[{out},1],"data_offsets":[{down},{}]}}}}"#,
            down + up
        );
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend((0..out + features).flat_map(|i| (i as f32 / 64.0).to_le_bytes()));
        let path = folder.join(format!("{layer}.safetensors"));
        std::fs::write(&path, bytes).unwrap();
        Arc::new(Lora::open(&path).unwrap())
    }

    /// What is kept of a prompt holds for these encoders with these LoRAs at these weights, and for no others.
    #[test]
    fn answers_kept_depend_on_loras_of_text_encoders() {
        let files = ModelSpec::default().find(&SearchPaths::default()).unwrap();
        let mut pipeline = crate::Pipeline::load(files, &LoadOptions::default(), &mut ()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let d = pipeline.prompts().pooled_width();
        let text = lora(folder.path(), "lora_te1_text_model_encoder_layers_0_self_attn_q_proj", [d, d]);
        let hidden = pipeline.hidden_size();
        let picture = lora(folder.path(), "lora_unet_double_blocks_0_img_attn_proj", [hidden, hidden]);
        let mut key = |used: &[(&Arc<Lora>, f32)], merge: bool| {
            let used = used.iter().map(|(lora, weight)| ((*lora).clone(), *weight)).collect();
            let reports = pipeline.set_loras(&Loras { used, merge }).unwrap();
            assert!(reports.iter().all(|report| report.unmatched.is_empty()), "{reports:?}");
            pipeline.prompts().key_of_encoders().name()
        };
        let none = key(&[], false);
        let with = key(&[(&text, 1.0)], false);
        assert_ne!(with, none);
        assert_ne!(key(&[(&text, 0.5)], false), with, "another weight");
        assert_eq!(key(&[(&text, 1.0), (&picture, 1.0)], false), with, "what changes pictures alone");
        assert_eq!(key(&[(&picture, 1.0)], false), none);
        assert_eq!(key(&[(&text, 0.0)], false), none, "switched off");
        assert_eq!(key(&[], false), none);
    }
}
