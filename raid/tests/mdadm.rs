//! The real mdadm reads what is written here: `mdadm --examine` on plain files.

use blockdev::sim::{MemDevice, MemTiming, VirtualRt};
use blockdev::{BlockDevice, Geometry, IoCtx, Mirror, Op, Pool, Sector};
use raid::assemble::{assemble, LegInput};
use raid::format::{create, CreateOptions};
use raid::superblock::Superblock;
use raid::witness::NoWitness;
use raid::{Array, Options};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;

const INSTALL: &str = "mdadm is missing: apt-get install -y mdadm";

/// A file that is gone at the end of its test.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The first 2 MiB of a leg (all its metadata) in a sparse file of its size.
fn to_file(name: &str, device: &MemDevice) -> Scratch {
    let path = std::env::temp_dir().join(format!("raid-{}-{name}", std::process::id()));
    let scratch = Scratch(path);
    let mut file = File::create(&scratch.0).expect("a scratch file");
    file.set_len(device.geometry().bytes()).expect("sparse");
    let mut head = vec![0; 2 << 20];
    device.peek(0, &mut head);
    file.seek(SeekFrom::Start(0)).expect("seekable");
    file.write_all(&head).expect("written");
    scratch
}

fn examine(file: &Scratch) -> String {
    let mdadm = ["/usr/sbin/mdadm", "/sbin/mdadm"]
        .into_iter()
        .find(|p| PathBuf::from(p).exists());
    let output = Command::new(mdadm.unwrap_or("mdadm"))
        .arg("--examine")
        .arg(&file.0)
        .output()
        .expect(INSTALL);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "mdadm --examine: {text} {output:?}"
    );
    text
}

/// `--examine-bitmap` takes a file as an external bitmap at offset 0.
fn examine_bitmap(name: &str, device: &MemDevice) -> String {
    let path = std::env::temp_dir().join(format!("raid-{}-{name}", std::process::id()));
    let scratch = Scratch(path);
    let mut bitmap = vec![0; 4096];
    device.peek(8192, &mut bitmap);
    std::fs::write(&scratch.0, &bitmap).expect("written");
    let mdadm = ["/usr/sbin/mdadm", "/sbin/mdadm"]
        .into_iter()
        .find(|p| PathBuf::from(p).exists());
    let output = Command::new(mdadm.unwrap_or("mdadm"))
        .arg("--examine-bitmap")
        .arg(&scratch.0)
        .output()
        .expect(INSTALL);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn field<'a>(text: &'a str, name: &str) -> &'a str {
    text.lines()
        .find_map(|line| line.trim().strip_prefix(name)?.trim().strip_prefix(':'))
        .map(str::trim)
        .unwrap_or_else(|| panic!("no {name} in {text}"))
}

struct Pair {
    world: VirtualRt,
    pool: Pool,
    legs: Vec<MemDevice>,
}

fn pair(legs: usize, sectors: u64) -> Pair {
    let world = VirtualRt::new(7);
    let pool = Pool::new(64 << 20);
    let leg = || {
        let geometry = Geometry::plain(sectors);
        MemDevice::new(world.rt(), pool.clone(), geometry, MemTiming::default())
    };
    let legs: Vec<MemDevice> = (0..legs).map(|_| leg()).collect();
    let devices: Vec<Rc<dyn BlockDevice>> = legs
        .iter()
        .map(|leg| Rc::new(leg.clone()) as Rc<dyn BlockDevice>)
        .collect();
    let (rt, shared) = (world.rt(), pool.clone());
    world.block_on(async move {
        let options = CreateOptions {
            name: "vol1".into(),
            equalise: true,
        };
        create(&rt, &shared, &devices, &options, |_, _| {})
            .await
            .expect("created");
    });
    Pair { world, pool, legs }
}

fn open(pair: &Pair) -> Rc<Array> {
    let legs = pair
        .legs
        .iter()
        .enumerate()
        .map(|(n, leg)| LegInput {
            name: format!("sto{}", n + 1),
            device: Some(Rc::new(leg.clone())),
        })
        .collect();
    let (rt, pool) = (pair.world.rt(), pair.pool.clone());
    let array = pair.world.block_on(async move {
        assemble(
            rt,
            pool,
            Rc::new(NoWitness),
            Options::new("vol1"),
            legs,
            false,
        )
        .await
    });
    let array = array.expect("assembled");
    array.recovered();
    array
}

#[test]
fn mdadm_accepts_both_legs_of_a_new_pair() {
    let pair = pair(2, 2_097_152);
    for (n, leg) in pair.legs.iter().enumerate() {
        let text = examine(&to_file(&format!("new{n}"), leg));
        assert_eq!(field(&text, "Version"), "1.2");
        assert_eq!(field(&text, "Raid Level"), "raid1");
        assert_eq!(field(&text, "Raid Devices"), "2");
        assert_eq!(field(&text, "Data Offset"), "4096 sectors");
        assert_eq!(field(&text, "Super Offset"), "8 sectors");
        assert_eq!(field(&text, "State"), "clean");
        assert_eq!(field(&text, "Events"), "1");
        assert_eq!(field(&text, "Device Role"), format!("Active device {n}"));
        assert!(field(&text, "Array State").starts_with("AA"));
        assert!(field(&text, "Checksum").ends_with("correct"), "{text}");
        assert!(
            field(&text, "Internal Bitmap").starts_with("8 sectors"),
            "{text}"
        );
        assert!(
            field(&text, "Bad Block Log").contains("offset 16 sectors"),
            "{text}"
        );
        let bitmap = examine_bitmap(&format!("bitmap{n}"), leg);
        assert_eq!(field(&bitmap, "Version"), "4");
        assert_eq!(field(&bitmap, "Chunksize"), "64 MB");
        assert!(
            field(&bitmap, "Bitmap").starts_with("16 bits (chunks), 16 dirty"),
            "{bitmap}"
        );
        assert_eq!(field(&text, "Array UUID"), field(&bitmap, "UUID"));
    }
}

#[test]
fn mdadm_accepts_legs_in_every_state() {
    let pair = pair(2, 2_097_152);
    let array = open(&pair);
    let op = Op::Write {
        at: Sector(80),
        data: pair.pool.copy_now(&[7; 4096]),
        want: Default::default(),
    };
    pair.world
        .block_on(array.submit(op, IoCtx::foreground()))
        .expect("written");
    for (n, leg) in pair.legs.iter().enumerate() {
        let text = examine(&to_file(&format!("active{n}"), leg));
        assert_eq!(field(&text, "State"), "active");
        assert!(field(&text, "Checksum").ends_with("correct"));
        let bitmap = examine_bitmap(&format!("active-bitmap{n}"), leg);
        assert!(field(&bitmap, "Bitmap").contains("2 dirty"), "{bitmap}");
    }
    let failing = array.clone();
    pair.world
        .block_on(async move { failing.fail("sto2").await })
        .expect("failed");
    pair.world.run_for(std::time::Duration::from_secs(10));
    let survivor = examine(&to_file("survivor", &pair.legs[0]));
    let failed = examine(&to_file("failed", &pair.legs[1]));
    assert!(
        field(&survivor, "Array State").starts_with("A."),
        "{survivor}"
    );
    assert!(
        field(&failed, "Array State").starts_with("AA"),
        "it does not know"
    );
    assert_eq!(
        (field(&survivor, "Events"), field(&failed, "Events")),
        ("3", "1")
    );
}

#[test]
fn mdadm_accepts_a_replacement_that_is_being_filled() {
    let pair = pair(2, 204_800);
    let array = open(&pair);
    let geometry = Geometry::plain(204_800);
    let timing = MemTiming {
        write: std::time::Duration::from_millis(50),
        ..MemTiming::default()
    };
    let third = MemDevice::new(pair.world.rt(), pair.pool.clone(), geometry, timing);
    let (replacing, device) = (array.clone(), Rc::new(third.clone()));
    let begun = async move { replacing.replace("sto2", "sto3", device, true, false).await };
    pair.world.block_on(begun).expect("begun");
    let text = examine(&to_file("replacement", &third));
    assert_eq!(field(&text, "Feature Map"), "0x13");
    assert_eq!(field(&text, "Device Role"), "Replacement device 1");
    assert!(field(&text, "Checksum").ends_with("correct"), "{text}");
    assert_eq!(field(&text, "Recovery Offset"), "0 sectors");
    let bitmap = examine_bitmap("replacement-bitmap", &third);
    assert_eq!(field(&text, "Array UUID"), field(&bitmap, "UUID"));
    pair.world.run_for(std::time::Duration::from_secs(60));
    for (n, leg) in [&pair.legs[0], &third].into_iter().enumerate() {
        let text = examine(&to_file(&format!("replaced{n}"), leg));
        assert_eq!(field(&text, "Device Role"), format!("Active device {n}"));
        assert!(field(&text, "Array State").starts_with("AA"), "{text}");
        assert_eq!(field(&text, "Feature Map"), "0x1");
    }
    let old = examine(&to_file("replaced-old", &pair.legs[1]));
    assert_eq!(field(&old, "Device Role"), "spare");
}

#[test]
fn mdadm_accepts_a_single_leg() {
    let pair = pair(1, 204_800);
    let text = examine(&to_file("single", &pair.legs[0]));
    assert_eq!(field(&text, "Raid Devices"), "1");
    assert!(field(&text, "Array State").starts_with('A'));
    let array = open(&pair);
    assert_eq!(array.legs(), 1);
}

/// The superblock of leg 1 of a pair that mdadm 4.2 made (320 MiB, bitmap chunk 1 MiB,
/// --assume-clean), field by field as Linux 6.1 left it idle, put together from its description.
fn made_by_mdadm(dev_number: u8) -> Vec<u8> {
    let mut page = vec![0u8; 4096];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &0xa92b_4efcu32.to_le_bytes());
    put(4, &1u32.to_le_bytes());
    put(8, &1u32.to_le_bytes());
    put(
        16,
        b"\x5a\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f",
    );
    put(32, b"homehost:0");
    put(64, &1_767_225_600u64.to_le_bytes());
    put(72, &1u32.to_le_bytes());
    put(80, &653_312u64.to_le_bytes());
    put(92, &2u32.to_le_bytes());
    put(96, &8u32.to_le_bytes());
    put(128, &2048u64.to_le_bytes());
    put(136, &653_312u64.to_le_bytes());
    put(144, &8u64.to_le_bytes());
    put(160, &u32::from(dev_number).to_le_bytes());
    put(168, &[dev_number + 1; 16]);
    put(186, &8u16.to_le_bytes());
    put(188, &16u32.to_le_bytes());
    put(192, &1_767_225_700u64.to_le_bytes());
    put(200, &1u64.to_le_bytes());
    put(208, &u64::MAX.to_le_bytes());
    put(220, &128u32.to_le_bytes());
    put(256, &[0xff; 256]);
    put(256, &[0, 0, 1, 0]);
    let sum: u64 = page[..512]
        .chunks(4)
        .map(|word| u64::from(u32::from_le_bytes(word.try_into().expect("four bytes"))))
        .sum();
    let sum = ((sum & 0xffff_ffff) + (sum >> 32)) as u32;
    page[216..220].copy_from_slice(&sum.to_le_bytes());
    page
}

#[test]
fn a_pair_made_by_mdadm_is_accepted() {
    let world = VirtualRt::new(7);
    let pool = Pool::new(64 << 20);
    let legs: Vec<MemDevice> = (0..2u8)
        .map(|n| {
            let geometry = Geometry::plain(655_360);
            let leg = MemDevice::new(world.rt(), pool.clone(), geometry, MemTiming::default());
            let superblock = made_by_mdadm(n);
            leg.poke(4096, &superblock);
            let mut bitmap = vec![0xff; 4096];
            bitmap[..256].fill(0);
            bitmap[0..4].copy_from_slice(&0x6d74_6962u32.to_le_bytes());
            bitmap[4..8].copy_from_slice(&4u32.to_le_bytes());
            bitmap[8..24].copy_from_slice(&superblock[16..32]);
            bitmap[24..32].copy_from_slice(&1u64.to_le_bytes());
            bitmap[40..48].copy_from_slice(&653_312u64.to_le_bytes());
            bitmap[52..56].copy_from_slice(&(1u32 << 20).to_le_bytes());
            bitmap[56..60].copy_from_slice(&5u32.to_le_bytes());
            leg.poke(8192, &bitmap);
            leg
        })
        .collect();
    // The bytes are what mdadm itself takes for its own.
    let text = examine(&to_file("theirs", &legs[0]));
    assert!(field(&text, "Checksum").ends_with("correct"), "{text}");
    assert!(field(&text, "Array State").starts_with("AA"));
    let parsed = Superblock::parse(&made_by_mdadm(1)).expect("a superblock");
    assert_eq!(
        &parsed.encode()[..],
        &made_by_mdadm(1)[..],
        "nothing of it is lost"
    );

    let pair = Pair { world, pool, legs };
    let array = open(&pair);
    let snapshot = array.snapshot();
    assert_eq!((snapshot.state, snapshot.bitmap_chunks), ("clean", 319));
    let op = Op::Write {
        at: Sector(80),
        data: pair.pool.copy_now(&[7; 4096]),
        want: Default::default(),
    };
    pair.world
        .block_on(array.submit(op, IoCtx::foreground()))
        .expect("written");
    let ending = array.clone();
    pair.world.block_on(async move { ending.stop().await });
    for (n, leg) in pair.legs.iter().enumerate() {
        let text = examine(&to_file(&format!("after{n}"), leg));
        assert_eq!(field(&text, "State"), "clean");
        let bitmap = examine_bitmap(&format!("after-bitmap{n}"), leg);
        assert!(field(&bitmap, "Bitmap").contains("0 dirty"), "{bitmap}");
    }
}
