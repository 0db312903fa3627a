//! Packet types. `CSTOMA` server to master, `MATOCS` master to server, `CLTOCS`/`CSTOCL` client and
//! server, `ANTOCS`/`CSTOAN` anyone and server.

/// `ANTOAN_NOP`: empty; either side, at any frame boundary, never answered.
pub const NOP: u32 = 0;
/// `ANTOAN_UNKNOWN_COMMAND`: accepted and ignored.
pub const UNKNOWN_COMMAND: u32 = 1;
/// `ANTOAN_BAD_COMMAND_SIZE`: accepted and ignored.
pub const BAD_COMMAND_SIZE: u32 = 2;
/// `ANTOAN_FORCE_TIMEOUT` (master to server since 4.12).
pub const FORCE_TIMEOUT: u32 = 5;
/// `ANTOAN_GET_VERSION`.
pub const GET_VERSION: u32 = 10;
/// `ANTOAN_VERSION`.
pub const VERSION: u32 = 11;
/// `ANTOAN_GET_CONFIG`.
pub const GET_CONFIG: u32 = 80;
/// `ANTOAN_CONFIG_VALUE`.
pub const CONFIG_VALUE: u32 = 81;

/// `CSTOMA_CHUNK_DOESNT_EXIST` (4.32 and later; 3.x masters close on it).
pub const CHUNK_DOESNT_EXIST: u32 = 96;
/// `MATOCS_CHUNK_STATUS`.
pub const CHUNK_STATUS: u32 = 97;
/// `CSTOMA_CHUNK_STATUS`.
pub const CHUNK_STATUS_ANSWER: u32 = 98;
/// `MATOCS_REGISTER_FIRST` (4.30 and later).
pub const REGISTER_FIRST: u32 = 99;
/// `CSTOMA_REGISTER`.
pub const REGISTER: u32 = 100;
/// `CSTOMA_SPACE`.
pub const SPACE: u32 = 101;
/// `CSTOMA_CHUNK_DAMAGED`.
pub const CHUNK_DAMAGED: u32 = 102;
/// `CSTOMA_CURRENT_LOAD`.
pub const CURRENT_LOAD: u32 = 103;
/// `MATOCS_MASTER_ACK`.
pub const MASTER_ACK: u32 = 104;
/// `CSTOMA_CHUNK_LOST`.
pub const CHUNK_LOST: u32 = 105;
/// `CSTOMA_ERROR_OCCURRED`.
pub const ERROR_OCCURRED: u32 = 106;
/// `CSTOMA_CHUNK_NEW`.
pub const CHUNK_NEW: u32 = 107;
/// `CSTOMA_LABELS`.
pub const LABELS: u32 = 109;

/// `MATOCS_CREATE`; each command's answer has the next number.
pub const CREATE: u32 = 110;
/// `MATOCS_DELETE`.
pub const DELETE: u32 = 120;
/// `MATOCS_DUPLICATE`.
pub const DUPLICATE: u32 = 130;
/// `MATOCS_SET_VERSION`.
pub const SET_VERSION: u32 = 140;
/// `MATOCS_REPLICATE`.
pub const REPLICATE: u32 = 150;
/// `MATOCS_CHUNKOP`.
pub const CHUNKOP: u32 = 152;
/// `MATOCS_REPLICATE_SPLIT`.
pub const REPLICATE_SPLIT: u32 = 154;
/// `MATOCS_REPLICATE_RECOVER`.
pub const REPLICATE_RECOVER: u32 = 156;
/// `MATOCS_REPLICATE_JOIN`.
pub const REPLICATE_JOIN: u32 = 158;
/// `MATOCS_TRUNCATE`.
pub const TRUNCATE: u32 = 160;
/// `MATOCS_DUPTRUNC`.
pub const DUPTRUNC: u32 = 170;
/// `MATOCS_LOCALSPLIT`.
pub const LOCALSPLIT: u32 = 180;

/// `CLTOCS_READ`.
pub const READ: u32 = 200;
/// `CSTOCL_READ_STATUS`.
pub const READ_STATUS: u32 = 201;
/// `CSTOCL_READ_DATA`.
pub const READ_DATA: u32 = 202;
/// `CLTOCS_WRITE`.
pub const WRITE: u32 = 210;
/// `CSTOCL_WRITE_STATUS`.
pub const WRITE_STATUS: u32 = 211;
/// `CLTOCS_WRITE_DATA`.
pub const WRITE_DATA: u32 = 212;
/// `CLTOCS_WRITE_FINISH`.
pub const WRITE_FINISH: u32 = 213;

/// `ANTOCS_GET_CHUNK_BLOCKS`.
pub const GET_CHUNK_BLOCKS: u32 = 250;
/// `CSTOAN_CHUNK_BLOCKS`.
pub const CHUNK_BLOCKS: u32 = 251;
/// `ANTOCS_GET_CHUNK_CHECKSUM`.
pub const GET_CHUNK_CHECKSUM: u32 = 300;
/// `CSTOAN_CHUNK_CHECKSUM`.
pub const CHUNK_CHECKSUM: u32 = 301;
/// `ANTOCS_GET_CHUNK_CHECKSUM_TAB`.
pub const GET_CHUNK_CHECKSUM_TAB: u32 = 302;
/// `CSTOAN_CHUNK_CHECKSUM_TAB`.
pub const CHUNK_CHECKSUM_TAB: u32 = 303;
/// `ANTOCS_GET_CHUNK_INFO` (4.x).
pub const GET_CHUNK_INFO: u32 = 304;
/// `CSTOAN_CHUNK_INFO`.
pub const CHUNK_INFO: u32 = 305;
/// `ANTOCS_CLEAR_ERRORS` (4.x).
pub const CLEAR_ERRORS: u32 = 306;
/// `CSTOAN_CLEAR_ERRORS`.
pub const CLEAR_ERRORS_ANSWER: u32 = 307;

/// `ANTOAN_MONOTONIC_DATA` (request).
pub const GET_MONOTONIC_DATA: u32 = 502;
/// `ANTOAN_MONOTONIC_DATA` (answer).
pub const MONOTONIC_DATA: u32 = 503;
/// `ANTOCS_CHART`.
pub const GET_CHART: u32 = 504;
/// `CSTOAN_CHART`.
pub const CHART: u32 = 505;
/// `ANTOCS_CHART_DATA`.
pub const GET_CHART_DATA: u32 = 506;
/// `CSTOAN_CHART_DATA`.
pub const CHART_DATA: u32 = 507;
/// `ANTOAN_MODULE_INFO` (request).
pub const GET_MODULE_INFO: u32 = 530;
/// `ANTOAN_MODULE_INFO` (answer).
pub const MODULE_INFO: u32 = 531;
/// `CLTOCS_HDD_LIST`.
pub const GET_HDD_LIST: u32 = 600;
/// `CSTOCL_HDD_LIST`.
pub const HDD_LIST: u32 = 601;
