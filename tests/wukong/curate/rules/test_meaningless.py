"""Captions that say nothing of their picture, and captions that look so and say something."""

import polars as pl
import pytest
from rule_samples import judge

from wukong.curate.text.meaningless import is_meaningless
from wukong.curate.text.normalize import normalized

MEANINGLESS = [
    "000.jpg", "IMG_2034", "IMG_2034.JPG", "img 2034 (2).jpeg", "DSC00012", "DSC_0012.NEF", "dscn1234",
    "PXL_20230102_1", "mmexport1554871234567", "微信图片_20200101123456.jpg", "微信图片_20200101",
    "QQ图片20180101", "屏幕截图 2021-03-04 101112", "截图1", "图片1", "图 3", "照片 (12)",
    "http://example.com/a.jpg", "https://example.com/图片", "www.example.com", "example.com", "123", "2019-03-05",
    "2019年3月5日", "2019年3月5日 12:30", "12:30", "1/3", "未命名", "未命名-1.psd", "无标题", "...", "！？",
    "d41d8cd98f00b204e9800998ecf8427e", "550e8400-e29b-41d4-a716-446655440000", "banner-home-2.png",
    "00001 - 副本.jpg", "IMG_2034 拷贝", "１２３．ｊｐｇ", "p_9912", "timg.jpg", "null",
]  # fmt: skip


MEANINGFUL = [
    "一只猫", "可爱的猫咪.jpg", "可爱的猫咪 IMG_2034.jpg", "2019年春节联欢晚会", "图片素材 蓝天白云", "照片墙",
    "三月的樱花", "12生肖", "5月的花海", "数字1", "日", "月", "年", "图片", "日历", "100分", "4k壁纸",
    "iPhone 12 手机壳", "第3名", "下载图标", "照片", "www.example.com 的首页截图", "1号楼", "24小时便利店",
    "文件夹", "图表", "截图工具", "二维码",
]  # fmt: skip


@pytest.mark.parametrize(("captions", "expected"), [(MEANINGLESS, True), (MEANINGFUL, False)])
def test_captions_that_say_nothing_and_those_that_say_something(captions, expected):
    found = pl.DataFrame({"c": captions}).select(is_meaningless(normalized(pl.col("c")))).to_series().to_list()
    assert [text for text, hit in zip(captions, found, strict=True) if hit is not expected] == []


def test_a_caption_that_says_nothing_is_dropped_as_meaningless_and_not_as_foreign():
    assert judge(["000.jpg", "微信图片_20200101", "一只猫"]) == ["meaningless", "meaningless", None]
