//! Where a request comes from other than flags: a workflow, or a picture that is to be made again.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use flux::{lora::Loras, model::ModelFiles, recipe::Recipe};

use crate::{
    Usage,
    lora_args::LoraArgs,
    model_args::{ModelArgs, search_paths},
    size_args::SizeArgs,
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

/// Refuses what a recipe asks for and nothing here can give yet.
pub(crate) fn refuse(recipe: &Recipe, has_image: bool) -> Result<()> {
    if let Some(image) = recipe.image.as_ref().filter(|_| !has_image) {
        let strength = recipe.strength.map(|strength| format!(" --strength {strength}")).unwrap_or_default();
        let hint = format!("hint: --image FILE{strength} --strength-mapping comfy");
        return Err(Usage(format!("--workflow: begins with the picture '{image}'; {hint}")).into());
    }
    Ok(())
}
