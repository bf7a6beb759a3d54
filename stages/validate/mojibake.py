"""Mojibake: text that was decoded in another encoding than it was encoded in."""

import re
from collections.abc import Iterator
from functools import cache

# U+FFFD in UTF-8, decoded as GBK, is 锟斤拷; a byte order mark is 锘; uninitialised memory is 烫, 屯, 葺 or 铪.
_LOST_CHARACTERS = "锟锘烫屯葺铪"
_LOST = re.compile(
    r"锟斤|斤拷锟|拷锟|锟[?？锟]|(?m:^)锘[縀-縿?？]|烫{4,}+(?![！!~～死手嘴])|屯{4,}+|葺{3,}+|铪{3,}+"
    r"|(?m:^)[烫屯]{3,}+$"
)
_ENCODING_TOPIC = re.compile(
    r"乱码|亂碼|编码|編碼|字符集|字元集|未初始化|调试|調試|mojibake|encoding|charset|UTF-?8|GBK|GB2312|Latin-1|Debug",
    re.IGNORECASE,
)
# A quoted letter such as “é” is not mojibake, though ftfy matches the letter with the closing quote.
_QUOTED = re.compile(r"“([^“”\n]{0,60}+)”|‘([^‘’\n]{0,60}+)’")
_LATIN_1 = re.compile("[\x80-\xff]")
_HAN_IN_LATIN_1 = (
    ("gb2312", re.compile("(?:[\xb0-\xf7\xa1\xa3][\xa1-\xfe]){2,}+")),
    ("big5", re.compile("(?:[\xa4-\xc6][@-~\xa1-\xfe]){2,}+")),
)
# The encoding a text was decoded in, and the one it was encoded in.
_MISREADINGS = (
    *((wrong, "utf-8") for wrong in ("gbk", "big5", "cp932", "cp949")),
    ("big5", "gbk"),
    ("gbk", "big5"),
    ("cp932", "gbk"),
    ("cp932", "big5"),
    ("gbk", "cp932"),
)
_MISREAD_AS_RUSSIAN = (("cp1251", "utf-8"), ("koi8-r", "utf-8"))
_WINDOW, _MAX_WINDOWS = 20, 100  # characters of a window, and windows of a text, which bound the time per row
_MIN_HAN_IN_LATIN_1 = 0.6  # share of common characters in a run of Latin-1 letters that is decoded as Chinese
_MIN_QUESTION_MARKS, _MIN_QUESTION_MARK_SHARE = 6, 0.7  # of a line: number, and share of its visible characters
_MAX_PLAUSIBLE_WINDOWS = 4  # windows with rare characters per misread one; above this, the text is not misread
# A window with more common characters than this share is not misread: with one rare character, with several.
_MAX_COMMON_WITH_ONE_RARE, _MAX_COMMON_WITH_RARE = 0.2, 0.4
_MIN_LETTERS = 3  # non-ASCII letters of a window; fewer show nothing
_MIN_GAIN = 0.2  # increase of the share of common characters by decoding in another encoding
_MIN_DECODED_SHARE = 0.4  # decoded characters per letter of the window; fewer mean that many bytes were not decoded
# Decoded as another encoding than UTF-8: least characters, and share of common ones, the fewer characters the higher.
_LONG, _SHORT = 6, 4
_MIN_COMMON_LONG, _MIN_COMMON_LONG_WITH_ONE_RARE, _MIN_COMMON_SHORT = 0.5, 0.6, 0.75
# Decoded as UTF-8: share of the non-ASCII bytes that are decoded; below it bytes were lost, or nothing is recognized.
_MIN_BYTES_WITHOUT_LOSS, _MIN_BYTES_WITH_LOSS = 0.5, 0.25
_MIN_COMMON_UTF8, _MIN_COMMON_UTF8_WITH_LOSS = 0.34, 0.5
_PUNCTUATION = frozenset("，。、？！：；“”‘’（）《》〈〉…—·・「」『』【】　")
_KANA = frozenset(map(chr, range(0x3041, 0x30FF)))
# The characters of five sixths of Chinese prose, and their traditional forms.
_COMMON = frozenset(
    "的一是和有可在我以不个個人能这這你为爲了要用中理法生时時对對性如行来來心方们們出定于於到过過他病会會感或自现"
    "現发發下并並上您者成体體大解些分情作关關治种種等进進同因疗療应應需问問学學力好子多果数數提据據地常通物题題与"
    "與动動其合得面而更肝后後重使么麼型也确確助经經实實化意间間高表最工保式建但度程无無道之它家业業相及知当當请請"
    "期国國将將此计計所患决決帮幫机機起小加然活正类類制明具己系量很想身都事症年案医醫查血产產外说說步前部手新就主"
    "还還状狀检檢被写寫着文特结結律议議内內公根包开開细細该該什何况況点點色术術长長续續受设設任信比务務变變规規持"
    "识識接供那本全样樣入专專件天质質影气氣效目药藥求从從原利食试試选選复復适適让讓处處每素先水去给給觉覺压壓代平"
    "习習裙非标標导導由别別条條格例癌炎没沒息口女权權风風证證位调調染管语語次毒项項名注致美交款技看括民少康衣向健"
    "婚做吗嗎白算认認图圖显顯功两兩询詢段取品断斷见見流增电電指基响響回虑慮里裏三户戶总總反安第清单單传傳完创創强"
    "強诊診院造带帶考组組研引达達字服究日改离離否直存立记記咨諮已近话話示展则則述放且社预預免神诉訴共首形只器她统"
    "統验驗支胞领領区區找序司模够夠师師护護列头頭失较較容便线線值视視论論减減未深准準测測低源轻輕义義整态態节節价"
    "價境网網吸约約环環抗始转轉儿兒痛像收许許哪打科养養协協构構资資言员員月采採真消二句爱愛备備维維球场場再快除必"
    "优優率易十住运運至精极極即门門温溫孩配元观觀政担擔参參答难難友松界施客排商告满滿空择擇足热熱积積际際金富害充"
    "词詞困怎战戰世输輸尝嘗简簡望吃喫联聯策智责責各疫几幾随隨疾拥擁伤傷费費尽盡亲親克评評车車花饮飲听聽味脑腦异異"
    "乙料象又析光寻尋肿腫防险險绪緒获獲某皮集西斯连連声聲候微教张張划劃乐樂双雙财財岁歲周老市推临臨练練描历歷码碼"
    "阳陽太限队隊降广廣思裤褲控升典路房释釋海书書称稱音丰豐边邊材独獨征徵含呢照承拉严嚴干幹呼片尿密损損眼激访訪红"
    "紅益胃错錯救才切判另夫份角艾般索团團"
)


def mojibake_characters() -> str:
    """Return characters of which every match of :func:`find_mojibake` has one, except for runs of question marks."""
    return "".join((*map(chr, range(0x80, 0x100)), *_rare_characters(), *_LOST_CHARACTERS, "‰"))


def find_mojibake(text: str) -> str | None:
    """Return the first piece that was decoded in the wrong encoding.

    ftfy finds UTF-8 decoded as a Western encoding. It leaves out results that are plausible Chinese, Japanese or
    Russian. Those are mojibake if they consist of rare characters and their bytes, decoded in another encoding, are
    common characters.
    """
    if any(character in text for character in _LOST_CHARACTERS) and (lost := _LOST.search(text)):
        return None if _ENCODING_TOPIC.search(text) else lost[0]
    if _LATIN_1.search(text) and (piece := _find_western(text)):
        return piece
    return _find_misread_han(text) or _find_question_marks(text)


def _find_western(text: str) -> str | None:
    """Return the first piece that no Western language has, or whose Latin-1 bytes are common Chinese characters."""
    from ftfy.badness import BADNESS_RE

    straight = _QUOTED.sub(lambda quoted: f'"{quoted[1] or quoted[2] or ""}"', text)
    for piece in BADNESS_RE.finditer(straight):
        if piece[0].strip("\ufffd"):
            return piece[0]
    for encoding, pattern in _HAN_IN_LATIN_1:
        for run in pattern.finditer(text):
            han = run[0][:_WINDOW].encode("latin-1").decode(encoding, "ignore")
            if len(set(han)) > 1 and sum(character in _COMMON for character in han) >= _MIN_HAN_IN_LATIN_1 * len(han):
                return run[0]
    return None


def _find_question_marks(text: str) -> str | None:
    """Return a line of question marks, the replacement for characters that an encoding lacks."""
    if text.count("?") < _MIN_QUESTION_MARKS:
        return None
    for line in text.splitlines():
        visible = len(line) - line.count(" ")
        if line.count("?") >= max(_MIN_QUESTION_MARKS, _MIN_QUESTION_MARK_SHARE * visible):
            return line
    return None


# Misread Chinese characters ------------------------------------------------------------------------


def _find_misread_han(text: str) -> str | None:
    """Return the first misread piece, if more than a quarter of all windows with rare characters are misread."""
    half = _WINDOW // 2  # a lost byte spoils the characters after it, so each half is tested on its own, too
    windows, misread = 0, []
    for window in _rare_windows(text):
        windows += 1
        misread += [piece for piece in (window, window[:half], window[half:]) if _is_misread(piece)][:1]
    return misread[0] if _MAX_PLAUSIBLE_WINDOWS * len(misread) > windows else None


@cache
def _rare_characters() -> str:
    """Return characters that are frequent in misread text and rare elsewhere: Han, Greek, Cyrillic, box drawing."""
    ranges = ((0x370, 0x460), (0x2500, 0x2580), (0x2E80, 0xA000), (0xE000, 0xFFDD))
    everyday = _everyday_characters("gbk") | _everyday_characters("big5") | _PUNCTUATION
    full_width = frozenset(map(chr, range(0xFF00, 0xFF5F)))
    return "".join(
        character
        for start, stop in ranges
        for character in map(chr, range(start, stop))
        if character not in everyday and character not in full_width
    )


@cache
def _everyday_characters(encoding: str) -> frozenset[str]:
    """Return the characters of everyday use, level 1 of the national standard."""
    leads = {"gbk": range(0xB0, 0xD8), "big5": range(0xA4, 0xC7)}[encoding]
    trails = (*(range(0x40, 0x7F) if encoding == "big5" else ()), *range(0xA1, 0xFF))
    return frozenset("".join(bytes((lead, trail)).decode(encoding, "ignore") for lead in leads for trail in trails))


@cache
def _rare() -> tuple[re.Pattern, frozenset[str]]:
    return re.compile(f"[{re.escape(_rare_characters())}]"), frozenset(_rare_characters())


def _rare_windows(text: str) -> Iterator[str]:
    """Yield short pieces of a line, each starting just before a rare character."""
    rare, _ = _rare()
    position = 0
    for _ in range(_MAX_WINDOWS):
        match = rare.search(text, position)
        if not match:
            return
        position = match.start() + _WINDOW
        before, _, after = text[max(match.start() - 2, 0) : position].partition("\n")
        yield before if len(before) > 2 or not after else after


def _is_misread(window: str) -> bool:
    """Whether a window with rare characters is plausible in another encoding."""
    _, rare = _rare()
    letters = [character for character in window if character > "\x7f" and character not in _PUNCTUATION]
    rare_count = sum(character in rare for character in letters)
    common_count = sum(character in _COMMON for character in letters)
    max_common_share = _MAX_COMMON_WITH_RARE if rare_count > 1 else _MAX_COMMON_WITH_ONE_RARE
    if len(letters) < _MIN_LETTERS or common_count > max_common_share * len(letters):
        return False
    common_share = common_count / len(letters)
    han = [character for character in letters if character >= "\u3400" and character not in _KANA]
    encodings = _MISREADINGS if 2 * len(han) > len(letters) else _MISREAD_AS_RUSSIAN
    return any(
        _is_better(window, wrong, right, len(letters), common_share, rare_count, skipped)
        for wrong, right in encodings
        for skipped in ((0,) if right == "utf-8" else (0, 1))
    )


def _is_better(
    window: str, wrong: str, right: str, letters: int, common_share: float, rare_count: int, skipped: int
) -> bool:
    """Whether a window becomes common characters if its bytes in encoding ``wrong`` are decoded as ``right``.

    Args:
        letters: number of characters of the window without punctuation and ASCII.
        common_share: share of common characters among them.
        rare_count: number of rare characters among them.
        skipped: bytes to skip: 1 for the second half of a character whose first half was lost.
    """
    code = window.encode(wrong, "ignore")[skipped:]
    if len(code) < letters:
        return False
    decoded = [character for character in code.decode(right, "ignore") if character > "\x7f"]
    plausible = [character for character in decoded if character not in _PUNCTUATION]
    if len(plausible) < 2:
        return False
    good = sum(character in _COMMON or (right == "cp932" and character in _KANA) for character in plausible)
    good_share = good / len(plausible)
    if good_share <= common_share + _MIN_GAIN:
        return False
    if right == "utf-8":
        return _is_utf8(code, decoded, plausible, good)
    if len(plausible) < _MIN_DECODED_SHARE * letters:
        return False
    is_everyday = right != "cp932" and all(character in _everyday_characters(right) for character in plausible)
    if len(plausible) >= _LONG or (len(plausible) >= _SHORT and is_everyday):
        return good_share >= (_MIN_COMMON_LONG if rare_count > 1 else _MIN_COMMON_LONG_WITH_ONE_RARE)
    return good_share >= _MIN_COMMON_SHORT and len(plausible) >= _SHORT


def _is_utf8(code: bytes, decoded: list[str], plausible: list[str], good: int) -> bool:
    """Whether bytes are UTF-8; random bytes seldom are, so few characters suffice.

    Args:
        decoded: non-ASCII characters of the bytes decoded as UTF-8.
        plausible: those without punctuation.
        good: number of common characters among the plausible ones.
    """
    good_share = good / len(plausible)
    decoded_bytes = sum(len(character.encode()) for character in decoded)
    is_everyday = all(character in _everyday_characters("gbk") for character in plausible)
    non_ascii_bytes = sum(byte > 0x7F for byte in code)
    if decoded_bytes < _MIN_BYTES_WITHOUT_LOSS * non_ascii_bytes:  # Big5, for one, has no character for many pairs
        is_enough = decoded_bytes >= _MIN_BYTES_WITH_LOSS * non_ascii_bytes and len(plausible) >= _MIN_LETTERS
        return is_enough and is_everyday and good_share >= _MIN_COMMON_UTF8_WITH_LOSS
    return (good >= 2 or is_everyday) and good_share >= _MIN_COMMON_UTF8
