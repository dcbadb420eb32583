//! What `docs/model.md` shows is what the model finds.

use model::picture::{picture, refresh, told};

use super::*;

const PAGE: &str = include_str!("../../../docs/model.md");

#[test]
fn the_pictures_show_what_the_model_finds() {
    assert_eq!(refresh(PAGE), PAGE, "draw them anew: cargo run --release -p model");
}

#[test]
fn each_picture_ends_in_a_second_effect() {
    for (name, protocol) in told() {
        let picture = picture(&protocol);
        let effects = picture.matches("TAKES EFFECT").count();
        assert_eq!(effects, 2, "{name}:\n{picture}");
        assert!(picture.lines().last().is_some_and(|last| last.contains("TAKES EFFECT (2)")), "{name}:\n{picture}");
        // Mended, it is not found any more.
        let built = Protocol { variant: Variant::Built, ..protocol };
        let checker = explore(name, &built, HasDiscoveries::AnyFailures);
        assert!(checker.discovery(ONE_EFFECT).is_none(), "{name} is broken as it is built");
    }
}
