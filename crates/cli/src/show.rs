//! A picture in the terminal: by the graphics protocol it understands, or in half blocks of 24-bit colour.
//!
//! Sizes are in pixels, or in cells of the terminal, which are taken to be twice as high as wide. What the terminal
//! understands is told from the environment; it is never asked, since an answer would have to be read from the keyboard.
//! Source: the kitty graphics protocol; iTerm2's inline images; DEC's sixel.

use std::io::{self, IsTerminal, Write};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use flux::pixels::Rgb8;

/// Pixels of the longer side that a protocol is given at most: more only takes time.
const LONGEST_SIDE: u32 = 1024;
/// The width in pixels that a cell is taken to have where the protocol cannot scale.
const CELL_WIDTH: u32 = 10;

/// Shows a picture as large as fits; writes nothing if `out` is no terminal.
pub(crate) fn show(picture: &Rgb8, out: &mut (impl Write + IsTerminal)) -> io::Result<()> {
    if !out.is_terminal() {
        return Ok(());
    }
    let (columns, rows) = terminal_size::terminal_size().map_or((80, 24), |(w, h)| (w.0.into(), h.0.into()));
    let protocol = Protocol::detect(|name| std::env::var(name).unwrap_or_default());
    // One row stays for what is written next.
    protocol.draw(picture, cells(picture, columns, u32::saturating_sub(rows, 1)), out)?;
    out.flush()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Kitty,
    Iterm2,
    Sixel,
    HalfBlocks,
}

impl Protocol {
    /// From environment variables, absent ones being empty. Multiplexers pass no graphics through.
    fn detect(variable: impl Fn(&str) -> String) -> Self {
        let (term, program) = (variable("TERM"), variable("TERM_PROGRAM"));
        let is_set = |name| !variable(name).is_empty();
        if is_set("TMUX") || is_set("STY") || term.starts_with("screen") || term.starts_with("tmux") {
            Self::HalfBlocks
        } else if ["iTerm.app", "WezTerm", "mintty"].contains(&program.as_str()) || variable("LC_TERMINAL") == "iTerm2"
        {
            Self::Iterm2
        } else if ["xterm-kitty", "xterm-ghostty"].contains(&term.as_str())
            || program == "ghostty"
            || is_set("KITTY_WINDOW_ID")
            || is_set("KONSOLE_VERSION")
        {
            Self::Kitty
        } else if ["foot", "mlterm", "contour"].iter().any(|name| term.starts_with(name)) || term.contains("sixel") {
            Self::Sixel
        } else {
            Self::HalfBlocks
        }
    }

    fn draw(self, picture: &Rgb8, (columns, rows): (u32, u32), out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Kitty => kitty(&png(&at_most(picture, LONGEST_SIDE))?, columns, rows, out),
            Self::Iterm2 => {
                let png = png(&at_most(picture, LONGEST_SIDE))?;
                let (size, data) = (png.len(), BASE64.encode(&png));
                writeln!(out, "\x1b]1337;File=inline=1;size={size};width={columns};height={rows}:{data}\x07")
            }
            Self::Sixel => sixel(&scaled(picture, columns * CELL_WIDTH, rows * CELL_WIDTH * 2), out),
            Self::HalfBlocks => half_blocks(&scaled(picture, columns, rows * 2), out),
        }
    }
}

/// The terminal scales a PNG to these cells; it comes in pieces of at most 4096 characters and is not to be answered.
fn kitty(png: &[u8], columns: u32, rows: u32, out: &mut impl Write) -> io::Result<()> {
    let data = BASE64.encode(png);
    let mut control = format!("a=T,f=100,q=2,c={columns},r={rows},");
    let mut pieces = data.as_bytes().chunks(4096).peekable();
    while let Some(piece) = pieces.next() {
        write!(out, "\x1b_G{control}m={};", u8::from(pieces.peek().is_some()))?;
        out.write_all(piece)?;
        write!(out, "\x1b\\")?;
        control.clear();
    }
    writeln!(out)
}

/// Bands of six rows; within a band one pass for each colour in it, out of 6·6·6 with the rest dithered.
fn sixel(picture: &Rgb8, out: &mut impl Write) -> io::Result<()> {
    const BAYER: [[u32; 4]; 4] = [[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]];
    let colour = |x: u32, y: u32| {
        let level =
            |value: u8| (value as u32 * 5 * 16 + BAYER[y as usize % 4][x as usize % 4] * 255 + 127) / (255 * 16);
        let [r, g, b] = picture.pixel(x, y).map(level);
        r * 36 + g * 6 + b
    };
    write!(out, "\x1bPq\"1;1;{};{}", picture.width(), picture.height())?;
    for index in 0..216 {
        write!(out, "#{index};2;{};{};{}", index / 36 * 20, index / 6 % 6 * 20, index % 6 * 20)?;
    }
    for top in (0..picture.height()).step_by(6) {
        // For each colour the bits of each column.
        let mut bits = std::collections::BTreeMap::<u32, Vec<u8>>::new();
        for y in top..picture.height().min(top + 6) {
            for x in 0..picture.width() {
                bits.entry(colour(x, y)).or_insert_with(|| vec![0; picture.width() as usize])[x as usize] |=
                    1 << (y - top);
            }
        }
        for (index, columns) in bits {
            write!(out, "#{index}")?;
            for run in columns.chunk_by(|a, b| a == b) {
                write!(out, "!{}{}", run.len(), (run[0] + b'?') as char)?;
            }
            write!(out, "$")?;
        }
        write!(out, "-")?;
    }
    writeln!(out, "\x1b\\")
}

/// Two pixels a cell: the upper half block in its colour on the lower one's.
fn half_blocks(picture: &Rgb8, out: &mut impl Write) -> io::Result<()> {
    for y in (0..picture.height()).step_by(2) {
        for x in 0..picture.width() {
            let ([r, g, b], lower) = (picture.pixel(x, y), (y + 1).min(picture.height() - 1));
            let [r2, g2, b2] = picture.pixel(x, lower);
            write!(out, "\x1b[38;2;{r};{g};{b};48;2;{r2};{g2};{b2}m▀")?;
        }
        writeln!(out, "\x1b[0m")?;
    }
    Ok(())
}

/// The columns and rows that fill a terminal in one direction and keep the picture's shape in the other.
fn cells(picture: &Rgb8, columns: u32, rows: u32) -> (u32, u32) {
    let [width, height] = [picture.width() as u64, picture.height() as u64];
    let columns = (columns as u64).min(rows as u64 * 2 * width / height).max(1);
    let rows = (columns * height / width / 2).clamp(1, rows.max(1) as u64);
    (columns as u32, rows as u32)
}

/// The picture, or a smaller one whose longer side is `longest`.
fn at_most(picture: &Rgb8, longest: u32) -> Rgb8 {
    let factor = (longest as f64 / picture.width().max(picture.height()) as f64).min(1.0);
    let part = |side: u32| ((side as f64 * factor) as u32).max(1);
    scaled(picture, part(picture.width()), part(picture.height()))
}

/// Each pixel the mean of those it stands for.
fn scaled(picture: &Rgb8, width: u32, height: u32) -> Rgb8 {
    let span = |at: u32, from: u32, to: u32| {
        let start = at * from / to;
        start..((at + 1) * from / to).max(start + 1)
    };
    let mut pixels = Vec::with_capacity(width as usize * height as usize * 3);
    for y in 0..height {
        for x in 0..width {
            let (rows, columns) = (span(y, picture.height(), height), span(x, picture.width(), width));
            let count = (rows.len() * columns.len()) as u32;
            let mut sum = [0; 3];
            for (row, column) in rows.flat_map(|row| columns.clone().map(move |column| (row, column))) {
                let pixel = picture.pixel(column, row);
                sum = std::array::from_fn(|c| sum[c] + pixel[c] as u32);
            }
            pixels.extend(sum.map(|sum| (sum / count) as u8));
        }
    }
    Rgb8::new(width, height, pixels)
}

/// The picture alone, without any metadata: it is seen and gone.
fn png(picture: &Rgb8) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, picture.width(), picture.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture.as_ref())?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(protocol: Protocol, picture: &Rgb8, cells: (u32, u32)) -> String {
        let mut out = Vec::new();
        protocol.draw(picture, cells, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// Red above blue.
    fn two_rows() -> Rgb8 {
        Rgb8::new(2, 2, vec![255, 0, 0, 255, 0, 0, 0, 0, 255, 0, 0, 255])
    }

    #[test]
    fn half_blocks_hold_two_rows_each() {
        let cell = "\x1b[38;2;255;0;0;48;2;0;0;255m▀";
        assert_eq!(drawn(Protocol::HalfBlocks, &two_rows(), (2, 1)), format!("{cell}{cell}\x1b[0m\n"));
        let one = scaled(&two_rows(), 1, 1);
        assert_eq!(one.pixel(0, 0), [127, 0, 127]);
        assert_eq!(scaled(&one, 3, 2).pixel(2, 1), [127, 0, 127]);
    }

    #[test]
    fn sixel_bands_name_their_colours() {
        let mut out = Vec::new();
        sixel(&two_rows(), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("\x1bPq\"1;1;2;2#0;2;0;0;0#1;2;0;0;20#"), "{text:?}");
        // Blue is colour 5 and in the second row, red 180 and in the first.
        assert!(text.ends_with("#5!2A$#180!2@$-\x1b\\\n"), "{text:?}");
    }

    #[test]
    fn kitty_takes_it_in_pieces() {
        let noise = Rgb8::new(64, 64, (0..64 * 64 * 3).map(|i| (i * i % 255) as u8).collect());
        let text = drawn(Protocol::Kitty, &noise, (40, 20));
        assert!(text.starts_with("\x1b_Ga=T,f=100,q=2,c=40,r=20,m=1;iVBOR"), "{}", &text[..60]);
        let last = text.rsplit("\x1b_G").next().unwrap();
        assert!(last.starts_with("m=0;") && last.ends_with("\x1b\\\n"));
        let data = |piece: &str| piece.split(';').nth(1).unwrap().trim_end_matches(['\n', '\\', '\x1b']).to_owned();
        let png = BASE64.decode(text.split("\x1b_G").skip(1).map(data).collect::<String>()).unwrap();
        assert_eq!(png, super::png(&noise).unwrap());
    }

    #[test]
    fn iterm2_takes_it_whole() {
        let text = drawn(Protocol::Iterm2, &two_rows(), (4, 2));
        assert!(
            text.starts_with("\x1b]1337;File=inline=1;size=") && text.contains(";width=4;height=2:iVBOR"),
            "{text:?}"
        );
        assert!(text.ends_with("\x07\n"));
    }

    #[test]
    fn pictures_keep_their_shape() {
        let fitted = |width, height, terminal: (u32, u32)| {
            let picture = Rgb8::new(width, height, vec![7; (width * height * 3) as usize]);
            cells(&picture, terminal.0, terminal.1)
        };
        assert_eq!(fitted(512, 512, (80, 23)), (46, 23));
        assert_eq!(fitted(512, 512, (40, 50)), (40, 20));
        assert_eq!(fitted(2048, 16, (80, 24)), (80, 1));
        assert_eq!(fitted(16, 2048, (80, 24)), (1, 24));
        let wide = at_most(&Rgb8::new(2048, 1, vec![7; 2048 * 3]), 1024);
        assert_eq!((wide.width(), wide.height()), (1024, 1));
        assert_eq!(at_most(&two_rows(), 1024), two_rows());
    }

    #[test]
    fn terminals_are_known_by_their_environment() {
        let detect = |set: &[(&str, &str)]| {
            Protocol::detect(|name| {
                set.iter().find(|(key, _)| *key == name).map_or(String::new(), |(_, v)| (*v).into())
            })
        };
        assert_eq!(detect(&[("TERM", "xterm-256color")]), Protocol::HalfBlocks);
        assert_eq!(detect(&[("TERM", "xterm-kitty"), ("KITTY_WINDOW_ID", "1")]), Protocol::Kitty);
        assert_eq!(detect(&[("TERM", "xterm-kitty"), ("TMUX", "/tmp/tmux")]), Protocol::HalfBlocks);
        assert_eq!(detect(&[("TERM_PROGRAM", "iTerm.app")]), Protocol::Iterm2);
        assert_eq!(detect(&[("TERM_PROGRAM", "WezTerm")]), Protocol::Iterm2);
        assert_eq!(detect(&[("TERM", "foot-extra")]), Protocol::Sixel);
        assert_eq!(detect(&[]), Protocol::HalfBlocks);
    }
}
