//! Which variant of a model suits this machine: by `plan`, from published configurations, before anything is downloaded.

use anyhow::{Result, anyhow};
use flux::{
    LoadOptions,
    model::Family,
    plan::{Plan, Workload},
    rehearsal::plan_flux1,
};
use hub::{
    catalog::{Model, Variant},
    transfer::Role,
};

use crate::{plan::parse_dtype, readable::bytes};

/// What a variant takes.
pub(crate) struct Fit<'a> {
    pub(crate) variant: &'a Variant,
    /// The most memory if all weights of a part stay in it, bytes.
    pub(crate) whole: u64,
    /// The least memory with which it runs at all, reading weights again at every step, bytes.
    pub(crate) least: u64,
}

/// This machine, as far as it counts here.
#[derive(Clone, Copy)]
pub(crate) struct Machine {
    /// Memory that may be used, bytes, where it is known.
    pub(crate) memory: Option<u64>,
    /// Free bytes on the cache's disk, where it is known.
    pub(crate) disk: Option<u64>,
}

/// All variants of a model that makes pictures; none for what is only a part of one.
pub(crate) fn fits(model: &Model) -> Result<Vec<Fit<'_>>> {
    let family = Family::from_name(model.home);
    let is_whole = |variant: &Variant| {
        let roles = [Role::Folder, Role::Transformer];
        variant.sources.iter().any(|source| roles.contains(&source.role))
    };
    if model.name == "redux" || !model.variants.iter().all(is_whole) {
        return Ok(Vec::new());
    }
    let workload = Workload::new(&family.defaults());
    let planned = |format: &str| -> Result<Plan> {
        let dtype = parse_dtype(format).map_err(|problem| anyhow!(problem))?;
        let options = LoadOptions { memory_limit: Some(u64::MAX), ..LoadOptions::default() };
        Ok(plan_flux1(family != Family::Schnell, dtype, workload, &options)?)
    };
    let mut all = Vec::new();
    for variant in &model.variants {
        let Variant { format, t5_format, .. } = variant;
        let mut plan = planned(format)?;
        if t5_format != format
            && let Some(t5) = planned(t5_format)?.parts.into_iter().find(|part| part.name == "t5")
        {
            plan.parts.iter_mut().filter(|part| part.name == "t5").for_each(|part| *part = t5.clone());
        }
        // Text encoders have gone when the transformer comes; it makes room for the autoencoder if it must.
        plan.keeps_transformer = false;
        all.push(Fit { variant, whole: plan.peak_bytes(), least: plan.least_bytes() });
    }
    Ok(all)
}

/// The most exact variant that stays in memory and has room on the disk, or the smallest that runs; and why, with numbers.
pub(crate) fn choose<'a>(model: &'a Model, fits: &[Fit<'a>], machine: Machine) -> Result<(&'a Variant, String)> {
    let Some(last) = fits.last() else {
        let only = model.variants.first().ok_or_else(|| anyhow!("{} has no variant", model.name))?;
        return Ok((only, format!("{}: {}", only.name, bytes(only.bytes()))));
    };
    let Some(memory) = machine.memory else {
        let usual = fits.iter().find(|fit| fit.variant.name == "q8_0").unwrap_or(&fits[0]);
        let hint = "how much memory this machine has is not known here; --memory-limit says it, --variant chooses";
        return Ok((usual.variant, format!("{}: {hint}", usual.variant.name)));
    };
    let has_room = |fit: &&Fit<'_>| machine.disk.is_none_or(|disk| fit.variant.bytes() <= disk);
    let suits = |fit: &&Fit<'_>| fit.whole <= memory && has_room(fit);
    let better = |fit: &Fit<'_>| match fits.iter().rfind(|other| other.whole > fit.whole) {
        Some(other) if other.whole > memory => format!("; {} would need {}", other.variant.name, bytes(other.whole)),
        Some(other) => {
            let disk = bytes(machine.disk.unwrap_or(0));
            format!("; {} would need {} on the disk, {disk} are free", other.variant.name, bytes(other.variant.bytes()))
        }
        None => String::new(),
    };
    if let Some(fit) = fits.iter().find(suits) {
        let (needed, better) = (bytes(fit.whole), better(fit));
        let why = format!("{}: needs {needed} of memory, {} are available{better}", fit.variant.name, bytes(memory));
        return Ok((fit.variant, why));
    }
    let streamed = fits.iter().rfind(|fit| fit.least <= memory && has_room(fit));
    if let Some(fit) = streamed {
        let why = format!(
            "{}: needs {} of memory to stay in it, {} are available, so a part of it is read again at every step",
            fit.variant.name,
            bytes(fit.whole),
            bytes(memory)
        );
        return Ok((fit.variant, why));
    }
    let why = format!(
        "{}: the smallest; it needs {} of memory at the least ({} are available) and {} on the disk ({} are free)",
        last.variant.name,
        bytes(last.least),
        bytes(memory),
        bytes(last.variant.bytes()),
        machine.disk.map_or_else(|| "?".into(), bytes)
    );
    Ok((last.variant, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(name: &str, memory: u64, disk: u64) -> (String, String) {
        let model = hub::catalog::find(name).unwrap();
        let fits = fits(&model).unwrap();
        let machine = Machine { memory: Some(memory * 1_000_000_000), disk: Some(disk * 1_000_000_000) };
        let (variant, why) = choose(&model, &fits, machine).unwrap();
        (variant.name.to_owned(), why)
    }

    #[test]
    fn a_variant_suits_the_memory_and_the_disk() {
        let krea = |memory, disk| chosen("krea", memory, disk).0;
        assert_eq!([krea(64, 500), krea(20, 500), krea(12, 500), krea(8, 500)], ["bf16", "q8_0", "q6_k", "q4_k"]);
        assert_eq!([krea(64, 30), krea(64, 14)], ["q8_0", "q5_k"], "the disk counts, too");
        let why = chosen("krea", 20, 500).1;
        assert!(why.starts_with("q8_0: needs 1") && why.contains("20.0 GB are available; bf16 would need 2"), "{why}");
        let streamed = chosen("krea", 5, 500);
        assert!(streamed.1.contains("read again at every step"), "{streamed:?}");
        assert!(chosen("krea", 1, 1).1.contains("the smallest"));
        assert_eq!(chosen("canny", 8, 500).0, "bf16", "there is no other");
        assert_eq!(chosen("redux", 8, 500).0, "bf16");
    }
}
