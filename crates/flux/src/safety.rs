//! The two gates: prompts reach a tokenizer only as [`Screened`], pictures are encoded only as [`Reviewed`].
//!
//! Both types have private fields, and only this module makes them; so "nothing passes unchecked" is a fact the compiler keeps.
//! A policy that is off still mints the types and says so in the picture's metadata. A picture that is flagged can be left out,
//! shown black, or held until a person lets it pass: [`Flagged`] gives its pixels to nobody.

mod classifier;
mod prompts;
mod words;

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc};

pub use self::classifier::Scores;
use self::{classifier::Classifier, prompts::PromptGate};
use crate::{
    error::{Error, Refused, Result, Subject},
    pixels::Rgb8,
};

/// Something a person wrote that the prompt policy let through.
///
/// Nobody else can make one:
/// ```compile_fail,E0423
/// let prompt = flux::safety::Screened("anything");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Screened<T>(T);

impl<T> Screened<T> {
    /// What was screened.
    pub fn get(&self) -> &T {
        &self.0
    }
}

/// A picture that the picture policy let through, or a black one in the place of one that it did not.
///
/// Nobody else can make one:
/// ```compile_fail,E0451
/// # use flux::{pixels::Rgb8, safety::{Reviewed, Verdict}};
/// let picture = Rgb8::new(1, 1, vec![0; 3]);
/// let reviewed = Reviewed { picture, verdict: Verdict::default() };
/// ```
/// and without one, nothing is encoded:
/// ```compile_fail,E0308
/// # use flux::{image_file::{self, Encoding, Provenance}, pixels::Rgb8};
/// let picture = Rgb8::new(1, 1, vec![0; 3]);
/// let file = image_file::encode(&picture, &Provenance::default(), Encoding::default());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Reviewed<T> {
    picture: T,
    verdict: Verdict,
}

impl<T> Reviewed<T> {
    /// What was reviewed.
    pub fn get(&self) -> &T {
        &self.picture
    }

    /// What was found. If it says `flagged`, this picture is black, or a person let it pass.
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }
}

/// What the picture gate found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Verdict {
    /// Whether the policy lets it pass no further.
    pub flagged: bool,
    /// What the network said; `None` if the gate is off.
    pub scores: Option<Scores>,
}

/// What is done with a picture that was flagged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnFlagged {
    /// It is left out; the others of its batch are made, then the run ends with [`Error::Refused`].
    #[default]
    Refuse,
    /// A black one takes its place, and its verdict says so.
    Black,
    /// As `Black`; besides, it is kept until a person has seen it.
    Hold,
}

impl fmt::Display for OnFlagged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refuse => "refuse",
            Self::Black => "black",
            Self::Hold => "hold",
        })
    }
}

impl FromStr for OnFlagged {
    type Err = Error;

    /// # Errors
    /// [`Error::Asked`] about `on_flagged`.
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "refuse" => Ok(Self::Refuse),
            "black" => Ok(Self::Black),
            "hold" => Ok(Self::Hold),
            _ => Err(Error::asked("on_flagged", format!("expected refuse, black or hold, got '{name}'"))),
        }
    }
}

/// What the gates are made of. The default is both, for whoever serves others.
#[derive(Clone, Debug, PartialEq)]
pub struct SafetyConfig {
    /// Whether prompts are compared with the lists in the program.
    pub prompts: bool,
    /// The operator's own list, compared whether or not `prompts` is on.
    pub word_list: Option<PathBuf>,
    /// Whether pictures go through the classifier.
    pub pictures: bool,
    /// A picture is flagged if p(porn) + p(hentai) is as much; above 0, up to 1.
    pub threshold: f32,
    /// A picture is flagged if p(sexy) is as much; `None`: that is no reason.
    pub sexy_threshold: Option<f32>,
    /// What is done with it then.
    pub on_flagged: OnFlagged,
}

/// The prompt gate's tables, bytes. Measured: 18.3 MiB.
const PROMPT_GATE: u64 = 19 << 20;

/// The picture gate's network and what it computes with, bytes. Measured: 16.6 MiB.
const PICTURE_GATE: u64 = 17 << 20;

/// Where Black Forest Labs' own program draws the line for its classifier; of the picture gate's false alarms,
/// `docs/safety.md` tells.
pub const DEFAULT_THRESHOLD: f32 = 0.85;

impl Default for SafetyConfig {
    fn default() -> Self {
        Self {
            prompts: true,
            word_list: None,
            pictures: true,
            threshold: DEFAULT_THRESHOLD,
            sexy_threshold: None,
            on_flagged: OnFlagged::default(),
        }
    }
}

/// What is done with prompts and pictures. A clone is the same policy and costs nothing; threads may share it.
///
/// FLUX.1 Krea \[dev\]'s licence asks whoever deploys the model for a content filter or manual review.
///
/// ```
/// use flux::{pixels::Rgb8, safety::{Safety, SafetyConfig}};
///
/// let safety = Safety::new(&SafetyConfig::default())?;
/// assert_eq!(safety.name(), "words+nsfwjs/0.85");
/// assert!(safety.screen("hardcore porn").is_err());
/// let reviewed = safety.review(Rgb8::new(64, 64, vec![90; 64 * 64 * 3]))?;
/// assert!(!reviewed.verdict().flagged);
/// # Ok::<(), flux::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Safety(Arc<Policy>);

#[derive(Clone, Debug)]
struct Policy {
    name: String,
    prompts: Option<Arc<PromptGate>>,
    pictures: Option<PictureGate>,
    on_flagged: OnFlagged,
}

#[derive(Clone, Copy, Debug)]
struct PictureGate {
    classifier: &'static Classifier,
    threshold: f32,
    sexy_threshold: Option<f32>,
}

/// Off.
impl Default for Safety {
    fn default() -> Self {
        Self::off()
    }
}

impl Safety {
    /// Everything passes.
    pub fn off() -> Self {
        Self::of(None, None, OnFlagged::Refuse)
    }

    /// The gates of a configuration. Reads the word list; the first picture gate of a program loads its network, 30 ms.
    ///
    /// # Errors
    /// [`Error::Asked`] about `safety_threshold` or `sexy_threshold`; [`Error::File`] naming the word list and the line.
    pub fn new(config: &SafetyConfig) -> Result<Self> {
        for (field, threshold) in
            [("safety_threshold", Some(config.threshold)), ("sexy_threshold", config.sexy_threshold)]
        {
            if let Some(threshold) = threshold.filter(|threshold| !(*threshold > 0.0 && *threshold <= 1.0)) {
                return Err(Error::asked(field, format!("expected more than 0, up to 1, got {threshold}")));
            }
        }
        let prompts = PromptGate::open(config.prompts, config.word_list.as_deref())?.map(Arc::new);
        let pictures = if config.pictures {
            let SafetyConfig { threshold, sexy_threshold, .. } = *config;
            Some(PictureGate { classifier: Classifier::shared()?, threshold, sexy_threshold })
        } else {
            None
        };
        Ok(Self::of(prompts, pictures, config.on_flagged))
    }

    fn of(prompts: Option<Arc<PromptGate>>, pictures: Option<PictureGate>, on_flagged: OnFlagged) -> Self {
        let words = prompts.as_ref().map(|gate| gate.name().to_owned());
        let network = pictures.as_ref().map(PictureGate::name);
        let name = words.into_iter().chain(network).collect::<Vec<_>>().join("+");
        let name = if name.is_empty() { "off".to_owned() } else { name };
        Self(Arc::new(Policy { name, prompts, pictures, on_flagged }))
    }

    /// The same for a request whose pictures are not to be judged, where the operator allows that: prompts still are.
    #[must_use]
    pub fn without_picture_gate(&self) -> Self {
        Self::of(self.0.prompts.clone(), None, self.0.on_flagged)
    }

    /// The same with another line for pictures, where there is a gate for them; above 0, up to 1.
    #[must_use]
    pub fn with_threshold(&self, threshold: f32) -> Self {
        let pictures = self.0.pictures.map(|gate| PictureGate { threshold, ..gate });
        Self::of(self.0.prompts.clone(), pictures, self.0.on_flagged)
    }

    /// The same with something else done to flagged pictures.
    #[must_use]
    pub fn with_on_flagged(&self, on_flagged: OnFlagged) -> Self {
        Self(Arc::new(Policy { on_flagged, ..(*self.0).clone() }))
    }

    /// The policy's name, for metadata: `off`, `words`, `words+list+nsfwjs/0.85`, `nsfwjs/0.9,sexy/0.95` …
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether nothing is looked at.
    pub fn is_off(&self) -> bool {
        self.0.prompts.is_none() && self.0.pictures.is_none()
    }

    /// Memory that the gates take once they were used, bytes; in a plan with the program's own.
    pub fn resident_bytes(&self) -> u64 {
        let prompts = if self.0.prompts.is_some() { PROMPT_GATE } else { 0 };
        prompts + if self.0.pictures.is_some() { PICTURE_GATE } else { 0 }
    }

    /// What is done with a flagged picture.
    pub fn on_flagged(&self) -> OnFlagged {
        self.0.on_flagged
    }

    /// Decides about a prompt before any work is done.
    ///
    /// # Errors
    /// [`Refused`], naming the category and not the words.
    pub fn screen<'a>(&self, text: &'a str) -> Result<Screened<&'a str>, Refused> {
        let Some(category) = self.0.prompts.as_ref().and_then(|gate| gate.category(text)) else {
            return Ok(Screened(text));
        };
        Err(Refused {
            policy: self.0.name.clone(),
            subject: Subject::Prompt,
            category: category.to_owned(),
            reason: format!("the prompt has words that stand for {category}"),
        })
    }

    /// What is to be avoided is not looked at: it leads the picture away from its words, and `nude, nsfw` is what careful people
    /// write there.
    pub fn screen_negative<'a>(&self, text: &'a str) -> Screened<&'a str> {
        Screened(text)
    }

    /// What the picture gate says of a picture, wherever it comes from.
    pub fn judge(&self, picture: &Rgb8) -> Verdict {
        let Some(gate) = &self.0.pictures else { return Verdict::default() };
        let scores = gate.classifier.scores(picture);
        Verdict { flagged: gate.flags(&scores), scores: Some(scores) }
    }

    /// Decides about a picture that somebody gave, before any work is done with it; `field` is what it was given as.
    ///
    /// # Errors
    /// [`Refused`], naming the field.
    pub fn check_given(&self, field: &'static str, picture: &Rgb8) -> Result<(), Refused> {
        let verdict = self.judge(picture);
        if verdict.flagged { Err(self.refused(Subject::Given(field), verdict)) } else { Ok(()) }
    }

    /// Decides about a finished picture.
    ///
    /// # Errors
    /// [`Flagged`], which becomes a [`Refused`] or an [`Error`] by `?`, a black picture, or one that is held.
    pub fn review(&self, picture: Rgb8) -> Result<Reviewed<Rgb8>, Flagged> {
        let verdict = self.judge(&picture);
        if verdict.flagged {
            return Err(Flagged { picture, verdict, refused: Box::new(self.refused(Subject::Picture, verdict)) });
        }
        Ok(Reviewed { picture, verdict })
    }

    fn refused(&self, subject: Subject, verdict: Verdict) -> Refused {
        let Scores { sexy, .. } = verdict.scores.unwrap_or_default();
        let explicit = verdict.scores.unwrap_or_default().explicit();
        let gate = self.0.pictures.as_ref();
        let by_sexy = gate.is_some_and(|gate| explicit < gate.threshold);
        let threshold = gate.map_or(DEFAULT_THRESHOLD, |gate| gate.threshold);
        let (category, score, threshold) = if by_sexy {
            ("suggestive content", sexy, gate.and_then(|gate| gate.sexy_threshold).unwrap_or(threshold))
        } else {
            ("sexual content", explicit, threshold)
        };
        let what = match subject {
            Subject::Given(field) => format!("the picture given as '{field}'"),
            Subject::Prompt | Subject::Picture => "the picture".to_owned(),
        };
        let reason =
            format!("{what} looks like {category} to a classifier that errs (score {score:.3}, limit {threshold})");
        Refused { policy: self.0.name.clone(), subject, category: category.to_owned(), reason }
    }
}

impl PictureGate {
    fn name(&self) -> String {
        let sexy = self.sexy_threshold.map_or_else(String::new, |threshold| format!(",sexy/{threshold}"));
        format!("nsfwjs/{}{sexy}", self.threshold)
    }

    /// What is no number is flagged as well.
    fn flags(&self, scores: &Scores) -> bool {
        let below = |score: f32, threshold: f32| score < threshold;
        !below(scores.explicit(), self.threshold) || self.sexy_threshold.is_some_and(|limit| !below(scores.sexy, limit))
    }
}

/// A picture that the policy did not let through. Its pixels cannot be had.
#[derive(Clone)]
pub struct Flagged {
    picture: Rgb8,
    verdict: Verdict,
    refused: Box<Refused>,
}

impl Flagged {
    /// What was found.
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// Why, as an error.
    pub fn refused(&self) -> &Refused {
        &self.refused
    }

    /// A black picture of its size, with its verdict.
    pub fn blacked(&self) -> Reviewed<Rgb8> {
        let [width, height] = [self.picture.width(), self.picture.height()];
        let pixels = vec![0; width as usize * height as usize * 3];
        Reviewed { picture: Rgb8::new(width, height, pixels), verdict: self.verdict }
    }

    /// Kept for a person's decision.
    pub fn held(self) -> Held {
        Held(self)
    }
}

impl fmt::Debug for Flagged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flagged({:?}: {})", self.picture, self.refused)
    }
}

impl From<Flagged> for Refused {
    fn from(flagged: Flagged) -> Self {
        *flagged.refused
    }
}

impl From<Flagged> for Error {
    fn from(flagged: Flagged) -> Self {
        Self::Refused(*flagged.refused)
    }
}

/// A flagged picture that waits for a person.
#[derive(Clone, Debug)]
pub struct Held(Flagged);

impl Held {
    /// What was found.
    pub fn verdict(&self) -> &Verdict {
        &self.0.verdict
    }

    /// The same with its picture changed: cut, enlarged. It waits all the same.
    #[must_use]
    pub fn map(self, change: impl FnOnce(Rgb8) -> Rgb8) -> Self {
        let Flagged { picture, verdict, refused } = self.0;
        Self(Flagged { picture: change(picture), verdict, refused })
    }

    /// Why it waits.
    pub fn refused(&self) -> &Refused {
        &self.0.refused
    }

    /// The picture, because a person has looked at it and answers for it. Its verdict stays what it was.
    #[must_use]
    pub fn approved(self) -> Reviewed<Rgb8> {
        let Flagged { picture, verdict, .. } = self.0;
        Reviewed { picture, verdict }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(threshold: f32, sexy_threshold: Option<f32>) -> PictureGate {
        PictureGate { classifier: Classifier::shared().unwrap(), threshold, sexy_threshold }
    }

    /// Logits whose softmax has these probabilities.
    fn forced(probabilities: [f32; 5]) -> Scores {
        Scores::from_logits(probabilities.map(f32::ln))
    }

    #[test]
    fn the_threshold_divides() {
        for (porn, hentai, flagged) in
            [(0.0, 0.0, false), (0.5, 0.349, false), (0.5, 0.351, true), (0.849, 0.0, false), (0.0, 0.851, true)]
        {
            let rest = 1.0 - porn - hentai;
            let scores = forced([0.0, hentai, rest, porn, 0.0]);
            assert_eq!(gate(0.85, None).flags(&scores), flagged, "{porn} + {hentai}");
            assert_eq!(gate(0.85, Some(0.9)).flags(&scores), flagged, "{porn} + {hentai}");
        }
        // As much as the threshold is flagged: at 1, only what the network is sure of.
        let sure = Scores::from_logits([0.0, 0.0, 0.0, 200.0, 0.0]);
        assert!(gate(1.0, None).flags(&sure) && !gate(1.0, None).flags(&forced([0.01, 0.0, 0.0, 0.99, 0.0])));
        let suggestive = forced([0.02, 0.0, 0.03, 0.0, 0.95]);
        assert!(!gate(0.85, None).flags(&suggestive));
        assert!(gate(0.85, Some(0.9)).flags(&suggestive) && !gate(0.85, Some(0.96)).flags(&suggestive));
        assert!(gate(1.0, None).flags(&Scores::from_logits([f32::NAN; 5])));
    }

    #[test]
    fn a_flagged_picture_is_black_or_waits() {
        let picture = Rgb8::new(2, 1, vec![10, 20, 30, 40, 50, 60]);
        // The least score is above this.
        let strict = Safety::of(None, Some(gate(f32::MIN_POSITIVE, None)), OnFlagged::Black);
        let flagged = strict.review(picture.clone()).unwrap_err();
        assert!(flagged.verdict().flagged && flagged.verdict().scores.is_some());
        assert!(!format!("{flagged:?}").contains("10"));
        let black = flagged.blacked();
        assert_eq!((black.get(), black.verdict().flagged), (&Rgb8::new(2, 1, vec![0; 6]), true));
        assert_eq!(flagged.refused().subject, Subject::Picture);
        let approved = flagged.clone().held().approved();
        assert_eq!((approved.get(), approved.verdict().flagged), (&picture, true));
        let cut = flagged.clone().held().map(|picture| Rgb8::new(1, 1, picture.as_ref()[..3].to_vec())).approved();
        assert_eq!((cut.get(), cut.verdict().flagged), (&Rgb8::new(1, 1, vec![10, 20, 30]), true));
        let given = strict.check_given("image", &picture).unwrap_err();
        assert_eq!((given.subject, given.category.as_str()), (Subject::Given("image"), "sexual content"));
        assert!(given.to_string().contains("given as 'image'"), "{given}");
        assert!(matches!(Error::from(flagged), Error::Refused(_)));

        let lenient = strict.with_threshold(1.0);
        assert_eq!(lenient.name(), "nsfwjs/1");
        assert!(lenient.review(picture.clone()).is_ok());
        let open = strict.without_picture_gate();
        assert_eq!((open.name(), open.judge(&picture)), ("off", Verdict::default()));
        assert_eq!(open.review(picture.clone()).unwrap().get(), &picture);
    }

    #[test]
    fn names_say_what_is_on() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("words.txt");
        std::fs::write(&list, "[brands]\nzorblax\n").unwrap();
        let name = |prompts, list: Option<&PathBuf>, pictures, sexy_threshold| {
            let word_list = list.cloned();
            let config = SafetyConfig { prompts, word_list, pictures, sexy_threshold, ..SafetyConfig::default() };
            Safety::new(&config).unwrap().name().to_owned()
        };
        assert_eq!(name(false, None, false, None), "off");
        assert_eq!(name(true, None, false, None), "words");
        assert_eq!(name(true, Some(&list), true, None), "words+list+nsfwjs/0.85");
        assert_eq!(name(false, Some(&list), false, None), "list");
        assert_eq!(name(false, None, true, Some(0.9)), "nsfwjs/0.85,sexy/0.9");
        assert!(Safety::off().is_off() && Safety::off().screen("porn").is_ok());

        let config = SafetyConfig { word_list: Some(list), pictures: false, ..SafetyConfig::default() };
        let safety = Safety::new(&config).unwrap();
        let refused = safety.screen("a zörblax").unwrap_err();
        assert_eq!((refused.category.as_str(), refused.subject), ("brands", Subject::Prompt));
        assert_eq!(refused.to_string(), "refused by the words+list policy: the prompt has words that stand for brands");
        assert_eq!(safety.screen_negative("a zorblax").get(), &"a zorblax");
        for threshold in [0.0, -1.0, 1.01, f32::NAN] {
            let error = Safety::new(&SafetyConfig { threshold, ..SafetyConfig::default() }).unwrap_err().to_string();
            assert!(error.starts_with("safety_threshold: expected more than 0"), "{error}");
        }
    }
}
