//! A picture in the terminal.

use std::io::{self, IsTerminal, Write};

use flux::pixels::Rgb8;

/// Columns a picture takes at most.
const COLUMNS: u32 = 64;

/// Shows a picture in half blocks of 24-bit colour: two pixels a character. Nothing where there is no terminal.
pub(crate) fn show(picture: &Rgb8, out: &mut (impl Write + IsTerminal)) -> io::Result<()> {
    if !out.is_terminal() {
        return Ok(());
    }
    let columns = picture.width().min(COLUMNS);
    let rows = (picture.height() * columns / picture.width()).max(2).next_multiple_of(2);
    let pixel = |x: u32, y: u32| {
        picture.pixel(x * picture.width() / columns, (y * picture.height() / rows).min(picture.height() - 1))
    };
    for y in (0..rows).step_by(2) {
        for x in 0..columns {
            let [[r, g, b], [r2, g2, b2]] = [pixel(x, y), pixel(x, y + 1)];
            write!(out, "\x1b[38;2;{r};{g};{b}m\x1b[48;2;{r2};{g2};{b2}m▀")?;
        }
        writeln!(out, "\x1b[0m")?;
    }
    Ok(())
}
