//! Where a request comes from other than flags: a workflow, or a picture that is to be made again.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use flux::{
    Request,
    lora::Loras,
    model::ModelFiles,
    recipe::{Places, Recipe},
};

use crate::{
    Usage,
    image_args::ImageArgs,
    lora_args::LoraArgs,
    model_args::{ModelArgs, search_paths},
    size_args::SizeArgs,
    style_args::StyleArgs,
};

/// Where a request comes from.
#[derive(Args, Clone)]
#[command(next_help_heading = "Made before")]
pub(crate) struct RecipeArgs {
    /// A ComfyUI workflow, saved from its editor or in its API format, or a picture with one in it; other flags go before it
    #[arg(long, value_name = "FILE")]
    workflow: Option<PathBuf>,
    /// Make this picture again: one of darkroom, ComfyUI or AUTOMATIC1111, with what its file says; other flags go before it
    #[arg(long, value_name = "IMAGE", conflicts_with = "workflow")]
    from: Option<PathBuf>,
}

impl RecipeArgs {
    /// What the file says, if one was given.
    pub(crate) fn read(&self) -> Result<Option<Recipe>> {
        Ok(match (&self.workflow, &self.from) {
            (Some(path), _) => Some(Recipe::from_workflow_file(path)?),
            (None, Some(path)) => Some(Recipe::from_picture_file(path)?),
            (None, None) => None,
        })
    }
}

impl RecipeArgs {
    /// The folder that its file is in.
    fn folder(&self) -> Option<&Path> {
        let parent = self.workflow.as_deref().or(self.from.as_deref())?.parent()?;
        Some(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
    }
}

/// The model's files: those that flags name, else those of the recipe, else the model in the box.
pub(crate) fn model(args: &ModelArgs, recipe: Option<&Recipe>) -> Result<ModelFiles> {
    let paths = search_paths();
    let spec = match recipe.filter(|_| !args.is_given()) {
        Some(recipe) => recipe.model_spec(&paths)?,
        None => None,
    };
    Ok(match spec {
        Some(spec) => args.over(spec).find(&paths)?,
        None => args.find()?,
    })
}

/// The upscaler's file: the flag's, else the recipe's, unless the flag asks for another factor's own.
pub(crate) fn upscaler(args: &SizeArgs, recipe: Option<&Recipe>) -> Result<Option<PathBuf>> {
    Ok(match (&args.upscaler, recipe) {
        (Some(file), _) => Some(file.clone()),
        (None, Some(recipe)) => recipe.upscaler(&search_paths())?,
        (None, None) => None,
    })
}

/// The recipe's LoRAs, unless flags name others.
pub(crate) fn loras(args: &LoraArgs, recipe: Option<&Recipe>) -> Result<Loras> {
    Ok(match recipe {
        Some(recipe) if args.names_none() => args.open(&recipe.lora_files(&search_paths())?)?,
        _ => args.open(&[])?,
    })
}

/// Reads the pictures that a recipe asks for into a request, but those that flags give.
pub(crate) fn pictures(
    recipe: &Recipe,
    args: &RecipeArgs,
    images: &ImageArgs,
    styles: &StyleArgs,
    request: &mut Request,
) -> Result<()> {
    let mut asked = recipe.pictures.clone();
    images.put_aside(&mut asked);
    if styles.is_given() {
        asked.styles.clear();
    }
    if asked.is_empty() {
        return Ok(());
    }
    let paths = search_paths();
    let places = Places { beside: args.folder(), paths: &paths, image: images.image() };
    Ok(asked.open(places, recipe.width.is_some(), request)?)
}

/// Refuses to make a picture again without the pictures that it was made from, which its file does not hold.
pub(crate) fn check_lost(recipe: &Recipe, images: &ImageArgs, styles: &StyleArgs) -> Result<()> {
    let mut missing = images.missing(&recipe.lost);
    missing.extend(styles.missing(&recipe.lost));
    if missing.is_empty() {
        return Ok(());
    }
    let problem = "--from: it was made from pictures, which its file does not hold";
    Err(Usage(format!("{problem}; hint: give them again with {}", missing.join(" "))).into())
}
