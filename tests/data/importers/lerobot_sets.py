"""Small LeRobot data sets of versions 2.1 and 3.0, written as their documentation says."""

import json

import numpy as np

from tests.data.importers.sources import png
from tests.data.importers.videos import noise, write_lossless

FPS = 10
PATHS = {
    "v2.1": {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    },
    "v3.0": {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    },
}
CAMERAS = ("observation.images.top", "observation.images.wrist")


def numbers(lengths, rewards):
    """The columns of all episodes, end to end."""
    total = sum(lengths)
    frame_index = np.concatenate([np.arange(length) for length in lengths])
    columns = {
        "observation.state": (np.arange(2 * total).reshape(total, 2) / 4).astype(np.float32),
        "action": (np.arange(3 * total).reshape(total, 3) / 8).astype(np.float32),
        "timestamp": (frame_index / FPS).astype(np.float32),
        "frame_index": frame_index,
        "episode_index": np.repeat(np.arange(len(lengths)), lengths),
        "index": np.arange(total),
        "task_index": np.zeros(total, int),
    }
    if rewards:
        columns["next.reward"] = (np.arange(total) % 4).astype(np.float32)
        columns["next.done"] = np.isin(np.arange(total), np.cumsum(lengths) - 1)
    return columns


def write_table(path, columns):
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = {name: pyarrow.array(list(each)) for name, each in columns.items()}
    pyarrow.parquet.write_table(pyarrow.table(table), path, row_group_size=16, write_page_checksum=True)


def write_lerobot(root, version, lengths=(12, 20, 15, 9), cameras=CAMERAS[:1], rewards=True, pictures=False):
    """Writes a data set; returns the frames ``[N, 16, 16, 3]`` of its first camera and the columns of all episodes."""
    columns = numbers(lengths, rewards)
    frames = {camera: noise(sum(lengths), seed=number) for number, camera in enumerate(cameras)}
    first = frames[cameras[0]]
    shapes = {"action": [3], "observation.state": [2]}
    features = {name: {"dtype": "float32", "shape": shapes.get(name, [1]), "names": None} for name in columns}
    features |= {camera: {"dtype": "video", "shape": [16, 16, 3], "names": None} for camera in cameras}
    if pictures:  # in the Parquet files, beside the numbers
        for camera in cameras:
            features[camera]["dtype"] = "image"
            columns[camera] = [{"bytes": png(each), "path": "frame.png"} for each in frames.pop(camera)]
    (write_v3 if version.startswith("v3") else write_v2)(root, lengths, columns, frames)
    content = {"codebase_version": version, "robot_type": None, "total_episodes": len(lengths), "chunks_size": 1000}
    content |= {"fps": FPS, "splits": {"train": f"0:{len(lengths)}"}, "features": features} | PATHS[version]
    (root / "meta").mkdir(exist_ok=True)
    (root / "meta" / "info.json").write_text(json.dumps(content))
    return first, columns


def write_v2(root, lengths, columns, frames):
    """An episode a file; tasks and statistics, which are not read, are left out."""
    ends = np.cumsum(lengths)
    lines = []
    for index, (length, end) in enumerate(zip(lengths, ends, strict=True)):
        rows = slice(end - length, end)
        write_table(
            root / f"data/chunk-000/episode_{index:06d}.parquet", {name: each[rows] for name, each in columns.items()}
        )
        for camera, pixels in frames.items():
            write_lossless(root / f"videos/chunk-000/{camera}/episode_{index:06d}.mp4", pixels[rows], FPS)
        lines.append(json.dumps({"episode_index": index, "tasks": ["push"], "length": length}))
    (root / "meta").mkdir(exist_ok=True)
    (root / "meta" / "episodes.jsonl").write_text("\n".join(lines) + "\n")


def write_v3(root, lengths, columns, frames):
    """Two files of data and video: the first holds all episodes but the last."""
    ends = np.cumsum(lengths)
    places = [0] * (len(lengths) - 1) + [1]
    seam = int(ends[-2])
    episodes = {
        "episode_index": np.arange(len(lengths)),
        "tasks": [["push"]] * len(lengths),
        "length": list(lengths),
        "dataset_from_index": ends - lengths,
        "dataset_to_index": ends,
        "data/chunk_index": [0] * len(lengths),
        "data/file_index": places,
    }
    for camera in frames:
        begins = np.where(places, 0, ends - lengths) / FPS
        episodes |= {
            f"videos/{camera}/chunk_index": [0] * len(lengths),
            f"videos/{camera}/file_index": places,
            f"videos/{camera}/from_timestamp": begins,
            f"videos/{camera}/to_timestamp": begins + np.array(lengths) / FPS,
        }
    write_table(root / "meta/episodes/chunk-000/file-000.parquet", episodes)
    for number, rows in enumerate((slice(seam), slice(seam, None))):
        write_table(
            root / f"data/chunk-000/file-{number:03d}.parquet", {name: each[rows] for name, each in columns.items()}
        )
        for camera, pixels in frames.items():
            write_lossless(root / f"videos/{camera}/chunk-000/file-{number:03d}.mp4", pixels[rows], FPS)
