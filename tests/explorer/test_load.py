"""Several clients at once, measured and drawn."""

from app.explorer import chart, measure
from app.explorer.load import Load
from app.schemas import ImageRequest
from tests.explorer.conftest import Watched


def test_so_many_clients_ask_at_once_each_with_its_own_seed(source: Watched) -> None:
    request = ImageRequest(prompt="a star", num_inference_steps=2)
    source.meet(3)
    loads = measure(source, request, clients=(3, 3))
    assert [(load.clients, len(load.latencies)) for load in loads] == [(3, 3), (3, 3)]
    assert source.most_in_flight == 3
    assert sorted(one.seed or 0 for one in source.asked[-3:]) == [0, 1, 2]
    assert all(0 < max(load.latencies) <= load.seconds for load in loads)


def test_the_chart_has_a_bar_for_each_number_of_clients(source: Watched) -> None:
    loads = measure(source, ImageRequest(prompt="a star", num_inference_steps=1), clients=(1, 2))
    latency, throughput = chart(loads).axes
    assert [text.get_text() for text in latency.get_xticklabels()] == ["1", "2"]
    assert [bar.get_height() for bar in throughput.containers[0]] == [load.pictures_per_minute for load in loads]
    assert Load(clients=2, latencies=(3.0, 4.0), seconds=4.0).pictures_per_minute == 30
