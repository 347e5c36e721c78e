//! How plots look: colours, fonts, legends, numbers on axes. Knows nothing about what is plotted.

use plotters::coord::Shift;
use plotters::drawing::DrawingAreaErrorKind;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// An area of an SVG.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Why nothing can be drawn.
pub type DrawError = DrawingAreaErrorKind<std::io::Error>;

/// The colour of text and axes: readable, and no blacker than it has to be.
pub const INK: RGBColor = RGBColor(51, 51, 51);
/// The colour of the grid.
pub const GRID: RGBColor = RGBColor(225, 225, 225);

/// Colours that the colour-blind tell apart (Okabe and Ito, "Color Universal Design", 2008).
pub const BLACK: RGBColor = RGBColor(0, 0, 0);
pub const ORANGE: RGBColor = RGBColor(230, 159, 0);
pub const SKY: RGBColor = RGBColor(86, 180, 233);
pub const GREEN: RGBColor = RGBColor(0, 158, 115);
pub const BLUE: RGBColor = RGBColor(0, 114, 178);
pub const VERMILION: RGBColor = RGBColor(213, 94, 0);
pub const PURPLE: RGBColor = RGBColor(204, 121, 167);
pub const GREY: RGBColor = RGBColor(140, 140, 140);

/// A series and how it looks.
#[derive(Clone, Copy)]
pub struct Look {
    /// What the legend calls it.
    pub title: &'static str,
    /// Its colour.
    pub color: RGBColor,
    /// How thick its line is.
    pub width: u32,
}

impl Look {
    /// How its line is drawn.
    pub fn line(self) -> ShapeStyle {
        self.color.stroke_width(self.width)
    }
}

/// Text of a size.
pub fn text(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

/// A figure's heading, and what is left below it.
///
/// # Errors
/// The file can't be written.
pub fn titled<'a>(root: &Area<'a>, title: &str) -> Result<Area<'a>, DrawError> {
    root.fill(&WHITE)?;
    root.draw(&Text::new(title.to_owned(), (24, 16), text(20)))?;
    let (_, below) = root.split_vertically(48);
    Ok(below)
}

/// What each series is called.
///
/// # Errors
/// The file can't be written.
pub fn legend(area: &Area, looks: &[Look]) -> Result<(), DrawError> {
    let middle = text(14).pos(Pos::new(HPos::Left, VPos::Center));
    for (index, look) in looks.iter().enumerate() {
        let y = 28 + 26 * index as i32;
        area.draw(&PathElement::new([(8, y), (36, y)], look.line()))?;
        area.draw(&Circle::new((22, y), 3, look.color.filled()))?;
        area.draw(&Text::new(look.title, (44, y), middle.clone()))?;
    }
    Ok(())
}

/// A number as short as it can be said: `0.5`, `20`, `3k`.
pub fn short(number: f64) -> String {
    if number >= 1e3 { format!("{}k", number / 1e3) } else { number.to_string() }
}

/// 1, 10, 100, ... within the range, which an axis is marked at.
pub fn decades(from: f64, to: f64) -> Vec<f64> {
    (-9..12).map(|exponent| 10_f64.powi(exponent)).filter(|x| (from..=to).contains(x)).collect()
}

/// The largest and the least of some positive numbers, with some air on a logarithmic axis.
pub fn range(numbers: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let least = numbers.clone().fold(f64::INFINITY, f64::min);
    let largest = numbers.fold(0.0, f64::max);
    if least <= largest { (least / 1.4, largest * 1.4) } else { (1.0, 10.0) }
}
