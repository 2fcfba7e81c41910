"""Captions that say nothing of their picture: ``000.jpg``, camera names, URLs, bare numbers.

The pattern describes the whole caption: ``IMG_2034.jpg`` is meaningless, ``可爱的猫咪 IMG_2034.jpg`` is not.
"""

import polars as pl

from wukong.curate.text.characters import HAN

_EXTENSION = r"(?:\.(?:jpe?g|jfif|png|gif|bmp|webp|tiff?|heic|heif|avif|svg|ico|raw|cr2|nef|psd|mp4|mov))"
_DOMAIN = r"(?:com|cn|net|org|edu|gov|info|cc|tv|top|vip|xyz|io|me|jp|hk|tw)"
_URL = rf"(?:(?:https?|ftp):/*\S+|www\.\S+|[\w-]+(?:\.[a-z0-9-]+)*\.{_DOMAIN}(?:[/:?#]\S*)?)"
_CAMERA = (
    r"(?:(?:img|image|imag|pic|pict|pxl|dsc[nf]?|_?dsc|sam|gopr|dji|mvimg|vid|wp|p|cimg|kimg|hpim|mmexport|wechatimg|"
    r"wx_camera|screenshot|scan|photo|beauty|tmp|unnamed|untitled|noname|thumb|default|banner|avatar|logo|temp|file)"
    r"[\s_\-]*\(?[\d\s_\-.]*\d*\)?)"
)
_CAMERA_ZH = (
    r"(?:(?:图片|图像|照片|相片|截图|屏幕截图|屏幕快照|截屏|微信图片|微信截图|qq图片|qq截图|下载|扫描|文件|新建文件夹|"
    r"图|幻灯片|捕获)[\s_\-]*[(（]?\d[\d\s_\-.:]*[)）]?)"
)
_UNTITLED = r"(?:未命名|无标题|未标题|无题|暂无(?:标题|描述|图片|说明)?|null|none|undefined|nan|n/?a)(?:[\s_\-]*\d+)?"
_NUMBERS = r"(?:[\d\s\p{P}\p{S}]*\d[\d\s\p{P}\p{S}]*)"
_TIME_ZH = r"(?:\d{1,2}[时点]\d{1,2}分?(?:\d{1,2}秒?)?)"
_DAY_ZH = r"(?:(?:\d{2,4}\s*年\s*)?\d{1,2}\s*月\s*(?:\d{1,2}\s*[日号]?)?|\d{4}\s*年)"
_DATE_ZH = rf"(?:{_DAY_ZH}(?:\s*(?:{_TIME_ZH}|\d{{1,2}}:\d\d(?::\d\d)?))?)"
_PUNCTUATION = r"(?:[\s\p{P}\p{S}]*)"
_IDENTIFIER = r"(?:\{?[0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12}\}?|[0-9a-f]{12,64}|[a-z]*\d+[a-z\d_\-]*)"
_COPY = r"(?:\s*(?:[-_]\s*)?(?:副本|拷贝|copy)(?:\s*\d+)?|\s*[(（]\d+[)）])*"
_STEM = "|".join((_URL, _CAMERA, _CAMERA_ZH, _UNTITLED, _NUMBERS, _DATE_ZH, _TIME_ZH, _IDENTIFIER, _PUNCTUATION))
_MEANINGLESS = rf"^(?:(?:{_STEM}){_COPY}{_EXTENSION}*{_COPY}|[^{HAN}]*{_EXTENSION})$"


def is_meaningless(normalized_caption: pl.Expr) -> pl.Expr:
    """Whether a caption in normal form is only a file or camera name, a URL, a number, a date or punctuation."""
    return normalized_caption.str.contains(_MEANINGLESS)
