//! Redraws the pictures of `docs/model.md`: `cargo run --release -p model`.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/model.md");
    let told = std::fs::read_to_string(&page)?;
    let drawn = model::picture::refresh(&told);
    std::fs::write(&page, &drawn)?;
    println!("{}: {}", page.display(), if told == drawn { "as it was" } else { "drawn anew" });
    Ok(())
}
