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
    for name in [
        "two-chunks",
        "rewritten",
        "cut",
        "snap-written",
        "snap-cut",
        "mapped",
    ] {
        wait_equal_copies(mount, &format!("shapes/{name}"), &[CHUNK_NODE, STOCK_NODE]);
    }
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
    for name in [
        "from-ours",
        "from-ours-sparse",
        "from-stock",
        "from-stock-sparse",
    ] {
        wait_equal_copies(
            mount,
            &format!("replicated/{name}"),
            &[CHUNK_NODE, STOCK_NODE],
        );
    }
    site.stock.as_mut().unwrap().kill();
    site.master.wait_chunkservers(1, MINUTE);
    site.mounted().remount();
    corpus.verify();
    site.stock.as_mut().unwrap().restart();
    site.master.wait_chunkservers(2, MINUTE);
}

/// A chain through both breaks at either end while an application writes.
fn one_alone_carries_a_load(site: &mut Site) {
    let folder = site.mounted().path().join("loaded");
    std::fs::create_dir(&folder).unwrap();
    site.mounted().set_goal(2, "loaded");
    let load = Load::start(&folder.join("file"), 21);
    load.progress(5, MINUTE);
    site.stock.as_mut().unwrap().kill();
    load.progress(5, 2 * MINUTE);
    site.stock.as_mut().unwrap().restart();
    site.master.wait_chunkservers(2, MINUTE);
    load.progress(5, 2 * MINUTE);
    site.antler.kill();
    load.progress(5, 2 * MINUTE);
    site.antler.serve();
    site.master.wait_chunkservers(2, MINUTE);
    load.progress(5, 2 * MINUTE);
    let acknowledged = load.finish();
    wait_equal_copies(site.mounted(), "loaded/file", &[CHUNK_NODE, STOCK_NODE]);
    site.mounted().remount();
    acknowledged.verify();
}
