//! Pictures written and read back: every format at every metadata level, foreign metadata, and damaged files.

use flux::image_file::{
    Encoding, Format, Found, FromPictures, LoraUsed, MetadataLevel, Provenance, Upscaled, decode, encode, read,
};
use flux::pixels::Rgb8;
use flux::safety::{Reviewed, Safety};

const FORMATS: [Format; 5] = [Format::Png, Format::Jpeg, Format::Webp, Format::Avif, Format::Gif];
const LEVELS: [MetadataLevel; 3] = [MetadataLevel::Full, MetadataLevel::Minimal, MetadataLevel::None];

fn picture(width: u32, height: u32) -> Reviewed<Rgb8> {
    let pixels = (0..width * height).flat_map(|i| [i % 251, i / width % 241, i % 7 * 30]).map(|v| v as u8).collect();
    Safety::off().review(Rgb8::new(width, height, pixels)).expect("nothing is refused")
}

fn provenance(prompt: &str) -> Provenance {
    Provenance {
        software: "darkroom 0.1.0".into(),
        model: "flux1-krea-dev".into(),
        prompt: Some(prompt.into()),
        negative_prompt: Some("blur & noise".into()),
        width: 45,
        height: 31,
        steps: 28,
        guidance: Some(4.5),
        true_cfg: 1.0,
        styles: vec!["redux".into(), "style:0.7".into()],
        seed: (1 << 53) + 1,
        noise: "cpu-f32".into(),
        sampler: "euler".into(),
        acceleration: "none".into(),
        schedule: "reference".into(),
        t5_length: 512,
        precision: "bf16".into(),
        safety: "off".into(),
        vae_tiling: Some(false),
        upscaled: vec![Upscaled { scale: 4, network: "span-x4".into() }],
        loras: vec![LoraUsed { name: "ink, \"wash\"".into(), weight: 0.8, hash: "0123456789ab".into() }],
        from_pictures: Some(FromPictures { strength: Some(0.6), mask: true, ..FromPictures::default() }),
    }
}

fn written(provenance: &Provenance, format: Format, metadata: MetadataLevel) -> Vec<u8> {
    encode(&picture(45, 31), provenance, Encoding { format, metadata, ..Encoding::default() }).expect("a small picture")
}

#[test]
fn what_is_written_is_found() {
    let prompts = [
        "a cat",
        "",
        "<b>\"tags\" & 'quotes'</b> ]]> --> </darkroom:provenance> &lt;&amp;lt;",
        "two\nlines\r\nand\ta tab\\",
        "café, 日本語, 👩‍👩‍👧 𝄞",
        "\u{0}\u{1}\u{1b}[31m\u{7f}\u{85}\u{2028}\u{feff}\u{fffe}\u{ffff}\u{10ffff}",
    ];
    for prompt in prompts {
        let full = provenance(prompt);
        let minimal = Provenance { prompt: None, negative_prompt: None, ..full.clone() };
        for format in FORMATS {
            for level in LEVELS {
                let told = match level {
                    MetadataLevel::Full => Some(&full),
                    MetadataLevel::Minimal => Some(&minimal),
                    MetadataLevel::None => None,
                };
                let found = read(&written(&full, format, level)).expect("our own file");
                let expected = Found {
                    format,
                    width: 45,
                    height: 31,
                    parameters: told.map(Provenance::parameters),
                    provenance: told.cloned(),
                    ai_generated: true,
                    other: Vec::new(),
                    comfy_prompt: None,
                    comfy_editor: None,
                };
                assert_eq!(found, expected, "{format} {level} {prompt:?}");
            }
        }
    }
}

#[test]
fn pixels_survive() {
    let picture = picture(45, 31);
    let bytes = written(&provenance("a cat"), Format::Png, MetadataLevel::Full);
    let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().expect("a PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("a small picture")];
    reader.next_frame(&mut pixels).expect("whole");
    assert_eq!(pixels, picture.get().as_ref());

    let lossless = Encoding { format: Format::Webp, quality: 100, ..Encoding::default() };
    let bytes = encode(&picture, &provenance("a cat"), lossless).expect("a small picture");
    let decoded = webp::Decoder::new(&bytes).decode().expect("a WebP");
    assert_eq!(&decoded[..], picture.get().as_ref());

    let size = |format, quality| {
        encode(&picture, &provenance(""), Encoding { format, quality, ..Encoding::default() }).expect("small").len()
    };
    for format in [Format::Jpeg, Format::Webp, Format::Avif] {
        assert!(size(format, 10) < size(format, 90), "quality means something to {format}");
    }
    for format in [Format::Jpeg, Format::Avif] {
        assert_eq!(size(format, 0), size(format, 1));
    }
}

/// Colours from dark red to light green, of which there are more than a GIF has.
fn gradient(width: u32, height: u32) -> Rgb8 {
    let shade = |x: u32, of: u32| (x * 255 / (of - 1)) as u8;
    let pixels = (0..width * height).flat_map(|i| [shade(i % width, width), shade(i / width, height), 90]).collect();
    Rgb8::new(width, height, pixels)
}

#[test]
fn a_gif_has_the_colours_or_near_ones() {
    let gif = Encoding { format: Format::Gif, ..Encoding::default() };
    let seen = |picture: &Rgb8| {
        let reviewed = Safety::off().review(picture.clone()).expect("nothing is refused");
        let bytes = encode(&reviewed, &provenance("a cat"), gif).expect("a small picture");
        decode(&bytes).expect("our own file").picture
    };
    // 256 colours stay as they are; the least picture has one.
    for exact in [gradient(16, 16), Rgb8::new(1, 1, vec![1, 2, 3]), Rgb8::new(3, 1, vec![7; 9])] {
        assert_eq!(seen(&exact), exact);
    }
    let many = gradient(64, 48);
    let near = seen(&many);
    // Over 8×8 pixels spread errors cancel each other, but for what crosses the border. At the picture's own border, beyond
    // which no colour of the 256 lies, they cannot.
    for (x, y) in (1..7).flat_map(|x| (1..5).map(move |y| (8 * x, 8 * y))) {
        for channel in 0..3 {
            let mean = |of: &Rgb8| {
                let sum = (0..64).map(|i| u32::from(of.pixel(x + i % 8, y + i / 8)[channel])).sum::<u32>();
                f64::from(sum) / 64.0
            };
            let (is, was) = (mean(&near), mean(&many));
            assert!((is - was).abs() < 3.0, "channel {channel} at {x}, {y}: {is} for {was}");
        }
    }
}

#[test]
fn avif_and_gif_as_other_programs_write_them() {
    let pillows = |name: &str| {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/pictures/");
        std::fs::read(format!("{folder}{name}")).expect("a golden")
    };
    let avif = pillows("described.avif");
    let found = read(&avif).expect("an AVIF");
    assert_eq!((found.format, found.width, found.height), (Format::Avif, 26, 19));
    assert!(found.ai_generated);
    assert_eq!(found.parameters.as_deref(), Some("Steps: 3"));
    assert!(decode(&avif).expect_err("no decoder").starts_with("is an AVIF file; PNG, JPEG, WebP and GIF are read"));
    let found = read(&pillows("interlaced.gif")).expect("a GIF");
    assert_eq!((found.other, found.parameters, found.ai_generated), (vec!["comment".to_owned()], None, false));
}

#[test]
fn a_prompt_too_long_for_a_jpeg_is_left_out() {
    let long = provenance(&"long ".repeat(20_000));
    let found = read(&written(&long, Format::Jpeg, MetadataLevel::Full)).expect("our own file");
    assert!(found.ai_generated);
    assert_eq!(found.provenance, Some(Provenance { prompt: None, negative_prompt: None, ..long.clone() }));
    for format in [Format::Png, Format::Webp, Format::Avif, Format::Gif] {
        let found = read(&written(&long, format, MetadataLevel::Full)).expect("our own file");
        assert_eq!(found.provenance.as_ref(), Some(&long));
    }
}

#[test]
fn formats_have_names_and_limits() {
    let names = FORMATS.map(|format| (format.to_string(), format));
    let others = [("PNG".to_owned(), Format::Png), ("jpg".to_owned(), Format::Jpeg)];
    for (name, format) in names.into_iter().chain(others) {
        assert_eq!(name.parse::<Format>().expect("a name"), format);
        assert_eq!(format.extension().parse::<Format>().expect("an extension"), format);
        assert_eq!(format.mime().strip_prefix("image/").expect("a type").parse::<Format>().expect("a name"), format);
    }
    assert!("bmp".parse::<Format>().is_err());

    let wide = picture(16_384, 1);
    let webp = Encoding { format: Format::Webp, ..Encoding::default() };
    let error = encode(&wide, &provenance(""), webp).expect_err("16,383 is libwebp's limit").to_string();
    assert!(error.starts_with("format: webp cannot hold 16384x1"), "{error}");
    let too_good = Encoding { quality: 101, ..webp };
    assert!(encode(&picture(1, 1), &provenance(""), too_good).is_err());
    for format in FORMATS {
        let dot = encode(&picture(1, 1), &provenance(""), Encoding { format, ..webp }).expect("the least picture");
        assert_eq!(read(&dot).map(|found| (found.width, found.height)).expect("our own file"), (1, 1));
    }
}

/// A PNG of one pixel with these chunks before its end.
fn png_with(chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    let header: (&[u8; 4], &[u8]) = (b"IHDR", &[0, 0, 0, 1, 0, 0, 0, 1, 8, 2, 0, 0, 0]);
    for (name, data) in [header].iter().chain(chunks) {
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(*name);
        bytes.extend(*data);
        bytes.extend([0; 4]);
    }
    bytes
}

#[test]
fn foreign_texts_are_named_or_read() {
    let packed = miniz_oxide::deflate::compress_to_vec_zlib("caf\u{e9} Steps: 3".as_bytes(), 6);
    let compressed = [b"parameters\0\x01\0\0\0", &packed[..]].concat();
    let found = read(&png_with(&[
        (b"tEXt", b"prompt\0{\"3\": {}}"),
        (b"tEXt", b"workflow\0{}"),
        (b"tEXt", b"workflow\0{}"),
        (b"iTXt", &compressed),
        (b"tEXt", b"parameters\0the second is not taken"),
        (b"tEXt", b"darkroom\0{\"software\": 3}"),
    ]))
    .expect("a PNG");
    assert_eq!(found.other, ["prompt", "workflow"]);
    assert_eq!(found.parameters.as_deref(), Some("café Steps: 3"));
    assert_eq!((found.provenance, found.ai_generated), (None, false));
}

/// A little-endian TIFF block as other programs write it, inside a PNG.
#[test]
fn foreign_exif_is_read() {
    let mut tiff = b"II*\0\x08\0\0\0\x02\0".to_vec();
    for (tag, kind, count, value) in [(0x010F_u16, 2_u16, 12_u32, 56_u32), (0x8769, 4, 1, 38)] {
        tiff.extend([tag, kind].map(u16::to_le_bytes).concat());
        tiff.extend([count, value].map(u32::to_le_bytes).concat());
    }
    tiff.extend([0; 4]);
    tiff.extend(b"\x01\0\x86\x92\x07\0\x12\0\0\0\x44\0\0\0\0\0\0\0");
    tiff.extend(b"Workflow:{}\0");
    tiff.extend(b"UNICODE\0S\0t\0e\0p\0s\0");
    let found = read(&png_with(&[(b"eXIf", &tiff)])).expect("a PNG");
    assert_eq!((found.parameters.as_deref(), &found.other[..]), (Some("Steps"), &["workflow".to_owned()][..]));
}

#[test]
fn what_unpacks_to_much_is_left_packed() {
    let bomb = miniz_oxide::deflate::compress_to_vec_zlib(&vec![b'x'; 50_000_000], 9);
    let chunk = [b"parameters\0\0", &bomb[..]].concat();
    let found = read(&png_with(&[(b"zTXt", &chunk)])).expect("a PNG");
    assert_eq!(found.parameters, None);
}

#[test]
fn damaged_files_do_no_harm() {
    for format in FORMATS {
        let whole = written(&provenance("a cat in a hat"), format, MetadataLevel::Full);
        for end in 0..whole.len() {
            let _ = read(&whole[..end]);
        }
        // Every byte once by values that make lengths and offsets extreme.
        let mut damaged = whole.clone();
        for at in 0..whole.len() {
            for value in [0x00, 0x7F, 0xFF, whole[at] ^ 0x80] {
                damaged[at] = value;
                let _ = read(&damaged);
            }
            damaged[at] = whole[at];
        }
    }
    for junk in [&b""[..], b"\x89PNG\r\n\x1a\n", b"\xFF\xD8\xFF", b"RIFF\0\0\0\0WEBP", b"GIF89a"] {
        assert!(read(junk).is_err());
    }
}
