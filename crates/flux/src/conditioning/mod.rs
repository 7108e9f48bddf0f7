//! Pictures that a picture is made from.

pub mod canny;
