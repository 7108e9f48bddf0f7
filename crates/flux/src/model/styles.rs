//! Where SigLIP's vision tower and the Redux projector are. They are looked for when a request has pictures for them.

use std::path::{Path, PathBuf};

use super::{
    ModelFiles, Part, PartFiles, SearchPaths,
    search::{Places, part_of, snapshot},
};
use crate::{
    error::{Error, Result},
    weights::Component,
};

/// Redux's repository in a Hugging Face cache.
const REPOSITORY: &str = "models--black-forest-labs--FLUX.1-Redux-dev";

/// Where they may be.
#[derive(Clone, Debug, Default)]
pub(crate) struct StyleSearch {
    /// `--redux-model`: a file or folder of the projector, or a folder with both.
    redux_model: Option<PathBuf>,
    /// `--vision-model`: a file or folder of SigLIP.
    vision_model: Option<PathBuf>,
    /// Folders as diffusers has them, with `image_encoder` and `image_embedder`.
    folders: Vec<PathBuf>,
    places: Option<Places>,
}

/// SigLIP and the projector, found.
#[derive(Clone, Debug)]
pub(crate) struct StyleFiles {
    pub(crate) vision: Part,
    pub(crate) projector: Part,
}

impl StyleSearch {
    /// Around a model that was found.
    pub(super) fn around(files: &ModelFiles, parts: &PartFiles, paths: &SearchPaths) -> Self {
        let origin = files.transformer.checkpoint.origin();
        let mut folders = Vec::new();
        // Beside a diffusers folder, or beside the file.
        for parent in origin.ancestors().skip(1).take(3).filter(|parent| parent.is_dir()) {
            folders.extend([parent.to_owned(), parent.join("FLUX.1-Redux-dev")]);
        }
        if let Some(cached) = paths.hf_cache.as_ref().map(|cache| cache.join(REPOSITORY)) {
            folders.push(snapshot(&cached).unwrap_or(cached));
        }
        Self {
            redux_model: parts.redux_model.clone(),
            vision_model: parts.vision_model.clone(),
            folders,
            // What is in the program has no place.
            places: if origin.exists() { Some(Places::new(origin, paths)) } else { None },
        }
    }

    /// Finds both.
    ///
    /// # Errors
    /// [`Error::Asked`] about `field` with what is missing and every place looked at; [`Error::File`].
    pub(crate) fn find(&self, field: &'static str) -> Result<StyleFiles> {
        let projector = self.part(self.redux_model.as_deref(), "image_embedder", Component::Redux)?;
        let vision = match &self.vision_model {
            Some(path) => self.part(Some(path), "image_encoder", Component::Vision)?,
            // A folder that has the projector may have the tower beside it.
            None => match &self.redux_model {
                Some(path) if path.join("image_encoder").is_dir() => {
                    self.part(Some(path), "image_encoder", Component::Vision)?
                }
                _ => self.part(None, "image_encoder", Component::Vision)?,
            },
        };
        match (vision, projector) {
            (Some(vision), Some(projector)) => Ok(StyleFiles { vision, projector }),
            (vision, projector) => Err(self.missing(field, vision.is_none(), projector.is_none())),
        }
    }

    /// One of them: given, in a folder of diffusers' layout, or in a tree of ComfyUI's.
    fn part(&self, given: Option<&Path>, folder: &str, component: Component) -> Result<Option<Part>> {
        if let Some(path) = given {
            let inside = path.join(folder);
            return part_of(if inside.is_dir() { &inside } else { path }, component).map(Some);
        }
        if let Some(found) = self.folders.iter().map(|root| root.join(folder)).find(|path| path.is_dir()) {
            return part_of(&found, component).map(Some);
        }
        self.places.as_ref().map_or(Ok(None), |places| places.find(component))
    }

    fn missing(&self, field: &'static str, vision: bool, projector: bool) -> Error {
        let files = [
            (projector, "the Redux projector (flux1-redux-dev.safetensors)"),
            (vision, "SigLIP's vision tower (sigclip_vision_patch14_384.safetensors)"),
        ];
        let files: Vec<&str> = files.into_iter().filter(|(missing, _)| *missing).map(|(_, file)| file).collect();
        let folders = self.folders.iter().map(|folder| format!("'{}'", folder.display()));
        let mut looked: Vec<String> = folders.collect();
        looked.extend(self.places.as_ref().map(Places::list).filter(|list| !list.is_empty()));
        let looked = if looked.is_empty() { "nowhere".into() } else { looked.join(", ") };
        let problem = format!("needs {}, not found; looked in {looked}", files.join(" and "));
        Error::asked(field, problem).hint(
            "--redux-model FOLDER (of FLUX.1-Redux-dev), or --redux-model FILE and --vision-model FILE, or put them into ComfyUI's \
             'style_models' and 'clip_vision'",
        )
    }
}
