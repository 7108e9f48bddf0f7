//! How large a picture is to be: the flags of `generate`.

use anyhow::Result;
use clap::Args;
use flux::{
    Request,
    model::{Defaults, LEAST_SIDE},
    sizes::{Aspect, Tier, Wish},
};

use crate::Usage;

/// How large a picture is to be.
#[derive(Args, Clone)]
#[command(next_help_heading = "Picture")]
pub(crate) struct SizeArgs {
    /// Width in pixels [default: the model's, 1024 for Krea]
    #[arg(short = 'W', long, value_name = "PIXELS")]
    pub(crate) width: Option<u32>,
    /// Height in pixels
    #[arg(short = 'H', long, value_name = "PIXELS")]
    pub(crate) height: Option<u32>,
    /// Both, such as 1024x768: decides, whatever --aspect and --resolution say; or a shape, such as 16:9
    #[arg(long, value_name = "WxH", value_parser = parse_wish, conflicts_with_all = ["width", "height"])]
    size: Option<String>,
    /// A shape, such as 3:2, with about as many pixels as the model's usual size; with --resolution the nearest of its rows
    #[arg(long, value_name = "W:H", value_parser = parse_aspect, conflicts_with_all = ["width", "height"])]
    aspect: Option<Aspect>,
    /// 0.5K, 1K, 1.5K, 2K or 4K: pixels from a table, for --aspect if it is given; 4K is 1K enlarged four times
    #[arg(long, value_name = "TIER", value_parser = parse_tier, conflicts_with_all = ["width", "height"])]
    resolution: Option<Tier>,
    /// Enlarge the finished picture two or four times
    #[arg(long, value_name = "2|4", value_parser = parse_scale)]
    upscale: Option<u32>,
    /// Enlarge with this network, as RealESRGAN_x4plus.safetensors [default: SPAN, in the program]
    #[arg(long, value_name = "FILE")]
    pub(crate) upscaler: Option<std::path::PathBuf>,
}

impl SizeArgs {
    /// Puts the size into a request that has the model's own, or that of its pictures: then one side alone is followed by the other.
    pub(crate) fn apply(&self, request: &mut Request) -> Result<()> {
        let own = f64::from(request.width) / f64::from(request.height);
        let usual = f64::from(request.width) * f64::from(request.height);
        let shape = |ratio: f64| {
            let side = |ratio: f64| (((usual * ratio).sqrt() / 16.0).round() * 16.0).clamp(16.0, 65536.0) as u32;
            (side(ratio), side(1.0 / ratio))
        };
        let size = self.size.as_deref();
        let pixels = size.filter(|size| *size != "auto" && size.parse::<Aspect>().is_err());
        if pixels.is_none() && self.resolution.is_none() {
            let aspect = size.and_then(|size| size.parse().ok()).or(self.aspect);
            if let Some(aspect) = aspect {
                (request.width, request.height) = shape(aspect.ratio());
            }
        } else {
            let wish = Wish { size, aspect: self.aspect, resolution: self.resolution };
            let size = wish.size()?;
            (request.width, request.height) = (size.width, size.height);
            request.upscale = size.upscale.or(request.upscale);
        }
        request.width = self.width.unwrap_or(request.width);
        request.height = self.height.unwrap_or(request.height);
        if !request.pictures.is_empty() {
            let side = |side: f64| side.round().clamp(16.0, 65536.0) as u32;
            match (self.width, self.height) {
                (Some(width), None) => request.height = side(f64::from(width) / own),
                (None, Some(height)) => request.width = side(f64::from(height) * own),
                _ => {}
            }
        }
        if let (Some(asked), Some(4), Some(Tier::FourK)) = (self.upscale, request.upscale, self.resolution)
            && pixels.is_none()
            && asked != 4
        {
            let problem = format!("--upscale {asked} and --resolution 4K, which is 1K enlarged four times, contradict");
            return Err(Usage(problem).into());
        }
        request.upscale = self.upscale.or(request.upscale);
        if self.upscaler.is_some() && request.upscale.is_none() {
            let problem = "--upscaler has no effect without --upscale or --resolution 4K; hint: add --upscale 4";
            return Err(Usage(problem.into()).into());
        }
        Ok(())
    }
}

/// What to know of a size that a small model was not made for, if anything.
pub(crate) fn note(request: &Request, usual: &Defaults) -> Option<String> {
    let small = usual.width.min(usual.height) < LEAST_SIDE;
    let large = request.width.max(request.height) > 2 * usual.width.max(usual.height);
    (small && large).then(|| {
        format!(
            "note: this model was made for {}×{} pixels and draws nothing that can be told at {}×{}; hint: --upscale 4 in the place of a size",
            usual.width, usual.height, request.width, request.height
        )
    })
}

fn parse_wish(text: &str) -> Result<String, String> {
    let wish = Wish { size: Some(text), ..Wish::default() };
    wish.size().map(|_| text.to_owned()).map_err(plain)
}

fn parse_tier(text: &str) -> Result<Tier, String> {
    text.parse().map_err(plain)
}

/// Shapes that a picture can have at all.
fn parse_aspect(text: &str) -> Result<Aspect, String> {
    let aspect: Aspect = text.parse().map_err(plain)?;
    if (1.0 / 16.0..=16.0).contains(&aspect.ratio()) {
        return Ok(aspect);
    }
    Err(format!("'{text}' is not a shape between 1:16 and 16:1"))
}

pub(crate) fn parse_scale(text: &str) -> Result<u32, String> {
    match text.trim_end_matches(['x', '×']) {
        "2" => Ok(2),
        "4" => Ok(4),
        _ => Err(format!("'{text}' is neither 2 nor 4")),
    }
}

/// Without the field, which clap names by its flag.
fn plain(error: flux::Error) -> String {
    match error {
        flux::Error::Asked { problem, .. } => problem,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_model_is_not_asked_for_a_large_picture_in_silence() {
        let small = Defaults { width: 96, height: 96, ..Defaults::default() };
        let mut request = Request::new("a red apple", &small);
        (request.width, request.height) = (1024, 1024);
        assert!(note(&request, &small).unwrap().contains("--upscale"));
        assert_eq!(note(&request, &Defaults::default()), None);
        (request.width, request.height) = (192, 96);
        assert_eq!(note(&request, &small), None);
    }

    fn args() -> SizeArgs {
        SizeArgs {
            width: None,
            height: None,
            size: None,
            aspect: None,
            resolution: None,
            upscale: None,
            upscaler: None,
        }
    }

    fn of(args: &SizeArgs) -> (u32, u32, Option<u32>) {
        let mut request = Request::new("", &flux::model::Defaults::default());
        (request.width, request.height) = (1024, 1024);
        args.apply(&mut request).unwrap();
        (request.width, request.height, request.upscale)
    }

    #[test]
    fn every_way_to_say_a_size() {
        assert_eq!(of(&args()), (1024, 1024, None));
        let aspect = Some(parse_aspect("3:2").unwrap());
        assert_eq!(of(&SizeArgs { aspect, ..args() }), (1248, 832, None));
        assert_eq!(of(&SizeArgs { aspect, resolution: Some(Tier::OneK), ..args() }), (1254, 836, None));
        assert_eq!(of(&SizeArgs { aspect, resolution: Some(Tier::FourK), ..args() }), (1254, 836, Some(4)));
        let size = Some("640x480".to_owned());
        let all = SizeArgs { size: size.clone(), aspect, resolution: Some(Tier::FourK), ..args() };
        assert_eq!(of(&all), (640, 480, None));
        assert_eq!(of(&SizeArgs { upscale: Some(2), ..all }), (640, 480, Some(2)));
        assert_eq!(of(&SizeArgs { size: Some("3:2".into()), ..args() }), (1248, 832, None));
        assert_eq!(of(&SizeArgs { size: Some("auto".into()), aspect, ..args() }), (1248, 832, None));
        assert_eq!(of(&SizeArgs { width: Some(64), ..args() }), (64, 1024, None));
    }

    #[test]
    fn contradictions_are_named() {
        let error = |args: &SizeArgs| {
            let mut request = Request::new("", &flux::model::Defaults::default());
            args.apply(&mut request).unwrap_err().to_string()
        };
        let four_k = SizeArgs { resolution: Some(Tier::FourK), upscale: Some(2), ..args() };
        assert!(error(&four_k).contains("--upscale 2"));
        assert!(error(&SizeArgs { upscaler: Some("a".into()), ..args() }).contains("--upscaler"));
        assert!(parse_wish("1024").is_err() && parse_wish("axb").is_err() && parse_wish("1x1") == Ok("1x1".into()));
        assert!(parse_aspect("0:2").is_err() && parse_aspect("100:1").is_err() && parse_aspect("nan:1").is_err());
        assert!(parse_scale("3").is_err() && parse_scale("4x") == Ok(4));
    }
}
