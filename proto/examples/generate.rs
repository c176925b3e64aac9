//! Writes `src/generated/` from `proto/`. Run by hand when the wire changes:
//! `cargo run -p proto --example generate`. No protoc is needed, and no build script runs.

use std::path::Path;

/// Writes the generated code into `out`.
pub fn generate(out: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let files = protox::compile([folder.join("vipwitness.v1.proto")], [folder])?;
    tonic_prost_build::configure()
        .out_dir(out)
        .compile_fds(files)?;
    Ok(())
}

#[cfg_attr(
    test,
    expect(dead_code, reason = "the test that compares calls `generate` itself")
)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    generate(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/generated"))
}
