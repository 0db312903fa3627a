//! Beside a stock mfschunkserver: chains through both, replication both ways, equal copies.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests: a panic is their verdict.

use std::time::Duration;

use harness::files::Corpus;
use harness::load::Load;
use harness::shapes::{self, wait_equal_copies};
use harness::site::{Site, Storage, CHUNK_NODE, STOCK_NODE};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn goal_two_with_a_stock_chunkserver() {
    let mut site = Site::start(Storage::Local, None);
    site.add_stock(2);
    chains_reach_both(&mut site);
    each_replicates_from_the_other(&mut site);
    one_alone_carries_a_load(&mut site);
}

fn chains_reach_both(site: &mut Site) {
    let mount = site.mounted();
    std::fs::create_dir(mount.path().join(shapes::FOLDER)).unwrap();
    mount.set_goal(2, shapes::FOLDER);
    let corpus = shapes::write_every_shape(mount);
    wait_equal_copies(mount, shapes::FOLDER, &[CHUNK_NODE, STOCK_NODE]);
    mount.remount();
    corpus.verify();

    // Each server alone holds it all.
    site.net.cut("mfs-stock");
    site.master.wait_chunkservers(1, MINUTE);
    site.mounted().remount();
    corpus.verify();
    site.net.restore("mfs-stock");
    site.master.wait_chunkservers(2, MINUTE);
    site.antler.stop();
    site.master.wait_chunkservers(1, MINUTE);
    site.mounted().remount();
    corpus.verify();
    site.antler.serve();
    site.master.wait_chunkservers(2, MINUTE);
}

fn each_replicates_from_the_other(site: &mut Site) {
    let root = site.mounted().path().join("replicated");
    let mut corpus = Corpus::new(&root, 5_000);
    site.mounted().set_goal(1, "replicated");

    // Written on ours alone, then copied by the stock server from us.
    site.stock.as_mut().unwrap().kill();
    site.master.wait_chunkservers(1, MINUTE);
    corpus.create("from-ours", (64 << 20) + 300_001, 1 << 20);
    corpus.write_at("from-ours-sparse", 5_000_000, 70_000);
    site.stock.as_mut().unwrap().restart();
    site.master.wait_chunkservers(2, MINUTE);

    // Written on the stock server alone, then copied by us from it.
    site.antler.stop();
    site.master.wait_chunkservers(1, MINUTE);
    corpus.create("from-stock", (64 << 20) + 300_001, 1 << 20);
    corpus.write_at("from-stock-sparse", 5_000_000, 70_000);
    site.antler.serve();
    site.master.wait_chunkservers(2, MINUTE);

    let mount = site.mounted();
    mount.set_goal(2, "replicated");
    wait_equal_copies(mount, "replicated", &[CHUNK_NODE, STOCK_NODE]);
    site.stock.as_mut().unwrap().kill();
    site.master.wait_chunkservers(1, MINUTE);
    site.mounted().remount();
    corpus.verify();
    site.stock.as_mut().unwrap().restart();
    site.master.wait_chunkservers(2, MINUTE);
}

/// A chain through both loses one server while an application writes; the other goes on alone, and
/// the one that returns gets what it missed. (One fault at a time: with goal 2, the copy that missed
/// writes is of no use until it was replicated again.)
fn one_alone_carries_a_load(site: &mut Site) {
    let folder = site.mounted().path().join("loaded");
    std::fs::create_dir(&folder).unwrap();
    site.mounted().set_goal(2, "loaded");

    let load = Load::start(&folder.join("without-stock"), 21);
    load.progress(5, MINUTE);
    site.stock.as_mut().unwrap().kill();
    load.progress(5, 2 * MINUTE);
    let first = load.finish();
    site.stock.as_mut().unwrap().restart();
    site.master.wait_chunkservers(2, MINUTE);

    let load = Load::start(&folder.join("without-ours"), 22);
    load.progress(5, MINUTE);
    site.antler.kill();
    load.progress(5, 2 * MINUTE);
    let second = load.finish();
    site.antler.serve();
    site.master.wait_chunkservers(2, MINUTE);

    wait_equal_copies(site.mounted(), "loaded", &[CHUNK_NODE, STOCK_NODE]);
    site.mounted().remount();
    first.verify();
    second.verify();
}
