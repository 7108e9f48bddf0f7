//! The program that shows how the library is used does what it says.

#[path = "../examples/generate.rs"]
#[expect(dead_code, reason = "its main is for people")]
mod generate;

#[test]
fn the_example_draws_and_saves() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("apple.png");
    generate::draw(&path).unwrap();
    let file = std::fs::read(&path).unwrap();
    let read = flux::image_file::read(&file).unwrap();
    assert_eq!((read.width, read.height), (96, 96));
    let provenance = read.provenance.unwrap();
    assert_eq!((provenance.prompt.as_deref(), provenance.seed), (Some("a red apple"), 7));
}
