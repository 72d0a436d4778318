"""Which files of a folder are clips."""

from __future__ import annotations

from cfer.video.files import clips_below, left_out_line


def test_a_folder_that_links_to_itself_is_looked_through_once(tmp_path):
    film = tmp_path / "b" / "film.mp4"
    film.parent.mkdir()
    film.write_bytes(b"x")
    for link, target in (("latest", "."), ("a", "b"), ("b/up", "..")):
        (tmp_path / link).symlink_to(target)
    elsewhere = tmp_path.with_name(f"{tmp_path.name} elsewhere")
    elsewhere.mkdir()
    (elsewhere / "other.mp4").write_bytes(b"x")
    (tmp_path / "linked").symlink_to(elsewhere)
    assert clips_below(tmp_path) == ([film, tmp_path / "linked" / "other.mp4"], [])


def test_each_file_that_is_left_out_is_named(tmp_path):
    videos = ["a.3gp", "b.ts", "c.m2ts", "d.ogv", "e.gif", "f.MP4"]
    others = ["g.txt", "h.webp", "i.bmp", "j.png", "k", "l.jpeg", "m.mp3"]
    for name in (*videos, *others, ".hidden"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "broken.mp4").symlink_to("nosuch.mp4")
    found, left_out = clips_below(tmp_path)
    assert [path.name for path in found] == videos
    assert [path.name for path in left_out] == ["broken.mp4", *others]
    assert left_out_line(left_out) == (
        f"8 files are left out, no clip by the name: {tmp_path}/broken.mp4, {tmp_path}/g.txt, "
        f"{tmp_path}/h.webp, {tmp_path}/i.bmp, {tmp_path}/j.png, … and 3 more"
    )
    assert left_out_line(["a.txt"]) == "1 file is left out, no clip by the name: a.txt"
