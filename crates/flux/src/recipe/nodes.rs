//! The ComfyUI nodes that are understood, and the names of their widgets in the order of the editor's `widgets_values`.
//!
//! `control_after_generate` is the editor's own: it says what becomes of a seed after a run.

/// Class and widgets.
const NODES: [(&str, &[&str]); 63] = [
    ("UNETLoader", &["unet_name", "weight_dtype"]),
    ("UnetLoaderGGUF", &["unet_name"]),
    ("UnetLoaderGGUFAdvanced", &["unet_name", "dequant_dtype", "patch_dtype", "patch_on_device"]),
    ("CheckpointLoaderSimple", &["ckpt_name"]),
    ("DualCLIPLoader", &["clip_name1", "clip_name2", "type", "device"]),
    ("DualCLIPLoaderGGUF", &["clip_name1", "clip_name2", "type"]),
    ("VAELoader", &["vae_name"]),
    ("CLIPTextEncode", &["text"]),
    ("CLIPTextEncodeFlux", &["clip_l", "t5xxl", "guidance"]),
    ("FluxGuidance", &["guidance"]),
    ("ConditioningZeroOut", &[]),
    ("EmptyLatentImage", &["width", "height", "batch_size"]),
    ("EmptySD3LatentImage", &["width", "height", "batch_size"]),
    ("KSampler", &["seed", CONTROL, "steps", "cfg", "sampler_name", "scheduler", "denoise"]),
    (
        "KSamplerAdvanced",
        &[
            "add_noise",
            "noise_seed",
            CONTROL,
            "steps",
            "cfg",
            "sampler_name",
            "scheduler",
            "start_at_step",
            "end_at_step",
            "return_with_leftover_noise",
        ],
    ),
    ("SamplerCustom", &["add_noise", "noise_seed", CONTROL, "cfg"]),
    ("SamplerCustomAdvanced", &[]),
    ("RandomNoise", &["noise_seed", CONTROL]),
    ("BasicGuider", &[]),
    ("CFGGuider", &["cfg"]),
    ("BasicScheduler", &["scheduler", "steps", "denoise"]),
    ("KSamplerSelect", &["sampler_name"]),
    ("ModelSamplingFlux", &["max_shift", "base_shift", "width", "height"]),
    ("LoraLoader", &["lora_name", "strength_model", "strength_clip"]),
    ("LoraLoaderModelOnly", &["lora_name", "strength_model"]),
    ("LoadImage", &["image", "upload"]),
    ("LoadImageMask", &["image", "channel", "upload"]),
    ("ImageToMask", &["channel"]),
    ("InvertMask", &[]),
    ("ImageScale", &["upscale_method", "width", "height", "crop"]),
    ("ImageScaleBy", &["upscale_method", "scale_by"]),
    ("ImageScaleToTotalPixels", &["upscale_method", "megapixels", "resolution_steps"]),
    ("FluxKontextImageScale", &[]),
    ("ImagePadForOutpaint", &["left", "top", "right", "bottom", "feathering"]),
    ("Canny", &["low_threshold", "high_threshold"]),
    ("VAEEncode", &[]),
    ("VAEEncodeForInpaint", &["grow_mask_by"]),
    ("SetLatentNoiseMask", &[]),
    ("InpaintModelConditioning", &["noise_mask"]),
    ("InstructPixToPixConditioning", &[]),
    ("ReferenceLatent", &[]),
    ("FluxKontextMultiReferenceLatentMethod", &["reference_latents_method"]),
    ("CLIPVisionLoader", &["clip_name"]),
    ("CLIPVisionEncode", &["crop"]),
    ("StyleModelLoader", &["style_model_name"]),
    ("StyleModelApply", &["strength", "strength_type"]),
    ("VAEDecode", &[]),
    ("VAEDecodeTiled", &["tile_size", "overlap", "temporal_size", "temporal_overlap"]),
    ("UpscaleModelLoader", &["model_name"]),
    ("ImageUpscaleWithModel", &[]),
    ("SaveImage", &["filename_prefix"]),
    ("PreviewImage", &[]),
    ("SaveImageWebsocket", &[]),
    ("PrimitiveInt", &["value", CONTROL]),
    ("PrimitiveFloat", &["value"]),
    ("PrimitiveString", &["value"]),
    ("PrimitiveStringMultiline", &["value"]),
    ("PrimitiveBoolean", &["value"]),
    // Of no effect on a picture.
    ("Note", &["text"]),
    ("MarkdownNote", &["text"]),
    // The editor's own, resolved with the links.
    ("PrimitiveNode", &[]),
    ("Reroute", &[]),
    ("SetNode", &["name"]),
];

const CONTROL: &str = "control_after_generate";

/// Names of a class's widgets; none of one that is not known.
pub(super) fn widgets(class: &str) -> &'static [&'static str] {
    NODES.iter().find(|(known, _)| *known == class).map_or(&[], |(_, widgets)| widgets)
}

/// Whether a picture can be followed through such a node.
pub(super) fn is_known(class: &str) -> bool {
    NODES.iter().any(|(known, _)| *known == class)
}

/// Nodes that are gone once links are resolved, and remarks.
pub(super) fn stands_for_nothing(class: &str) -> bool {
    ["PrimitiveNode", "Reroute", "SetNode", "GetNode", "Note", "MarkdownNote"].contains(&class)
}
