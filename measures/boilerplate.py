"""Refusals and "as an AI language model" boilerplate in answers, in Chinese and English.

The data checks and the comparison of models share this definition. People refuse and apologise as well: in customer
service, medicine, novels and translations. A match is therefore a sentence in which the answer calls itself a model, or
a refusal of a task that only a model is asked for, without any help after it.
"""

import re

# Maps the traditional characters in the patterns below, so that every pattern is written in simplified characters only.
_SIMPLIFIED = str.maketrans(
    "為個這種語無對問題應請沒辦學習會來說訊資內體該從實現時經驗觀點見機處圖網連線開號幫給讓發過還樣僅並項訓練們當"
    "動務舉難輸應詢幾麼與歡產業設計規則產識別聲讀寫畫顯視頻檔擁備權響電腦話軟員慧誰嗎進違買賣訂執協滿傳覽獲證",
    "为个这种语无对问题应请没办学习会来说讯资内体该从实现时经验观点见机处图网连线开号帮给让发过还样仅并项训练们当"
    "动务举难输应询几么与欢产业设计规则产识别声读写画显视频档拥备权响电脑话软员慧谁吗进违买卖订执协满传览获证",
)
# An answer without any of these substrings cannot match; the test costs a fraction of the patterns.
_SUBSTRINGS = (
    "抱歉", "对不起", "對不起", "憾", "不好意思", "无法", "無法", "有能力", "看不到", "不明白", "AI", "人工智", "模型",
    "机器人", "機器人", "助手", "助理", "程序", "程式", "GPT", "我的知", "我的訓", "我的训",
)  # fmt: skip
_ENGLISH_SUBSTRINGS = (
    "language", "artificial", "orry", "pologi", "nfortunately", "I can", "I'm ", "I’m ", "I am ", "I don", "I do not",
    "nowledge",
)  # fmt: skip

# "As an AI model", "since I am only a chat bot" ----------------------------------------------------

_MODEL_NOUN = (
    r"(?:(?:AI|A\.I\.|ＡＩ|人工智[能慧]|智能|虚拟|聊天|对话|大型?|文字型?|文本型?|自然|计算机|语言|预训练|机器学习|模型"
    r"|在线|生成式|处理|的|[、，\s])"
    r"{0,9}(?:语言模型|文[本字]模型|大模型|机器学习模型|语言处理模型|语言大模型"
    r"|AI(?!画|绘|芯|公司|技术|领域|行业|时代|专家|工程|研究|产品|应用)|人工智[能慧](?!专家|工程|研究|公司|领域|行业|技术|时代)"
    r"|机器人|智能助[手理]|虚拟助[手理]|聊天助[手理]|语言助[手理]|计算机程序|电脑程序|ChatGPT|GPT-?\d?)"
    r"(?:\s?(?:语言|对话|聊天|虚拟|智能)?(?:助[手理]|模型|程序|系统|机器人|工具|实体|AI)){0,2})"
)
_MAKER = (
    r"(?:(?:由[^，。！？\n]{1,20}?|[A-Za-z\u4e00-\u9fff]{2,12}?)(?:训练|开发|研发|创建|创造|设计|打造|制造|推出|编写|构成|组成)"
    r"(?:出来|而成)?的)?"
)
_DETERMINER = r"(?:一?[个名款位种台]|[您你]的)?"  # "a" (with a measure word) or "your"
_ADJECTIVES = r"(?:[^，。！？\n我你您他]{0,16}?的|开源|专业|多语言|免费|基于\w{2,4}?的?)?\s*"
_CLAUSE_END = r"(?=[，,。；;！!、\s]|而已|罢了|$|并?没有|并?不|无法|所以|因此)"
_CANNOT_ANYTHING = r"(?:没有|不具备|不具有|无法|不能|不会|不像|不可能|不拥有|没办法|不是真)"
_SELF_REFERENCE = re.compile(
    rf"(?<![你您他它])(?:作为|身为){_DETERMINER}{_MAKER}{_ADJECTIVES}{_MODEL_NOUN}(?:\s*[，,、：:][^。！？\n]{{0,20}}?|\s*)"
    r"(?:我(?!们|国|方)|本[模系]|这个问题|很难|无法|不能|没有|并不|并没有|重要的是|请注意)"
    rf"|我作为{_DETERMINER}{_MAKER}{_ADJECTIVES}{_MODEL_NOUN}"
    rf"|(?:因为|由于|毕竟|鉴于|既然)我(?:只|仅|不过|目前|本身|就)?是{_DETERMINER}{_MAKER}{_ADJECTIVES}{_MODEL_NOUN}{_CLAUSE_END}"
    rf"|我(?:只不过|仅仅|只|仅|不过)是{_DETERMINER}{_MAKER}{_ADJECTIVES}{_MODEL_NOUN}{_CLAUSE_END}"
    rf"|我是{_DETERMINER}{_MAKER}{_ADJECTIVES}{_MODEL_NOUN}[，,。；;、\s]{{0,3}}(?:所以|因此|故"
    rf"|而)?(?:我的[^，。]{{1,12}}[，,])?(?:我|并|也|还)?"
    rf"(?:本身|目前|自己|并)?{_CANNOT_ANYTHING}"
    r"|我的(?:互动|交互|能力|回答|功能|训练)(?:仅|只)限于"
    # "My knowledge ends in September 2021": the limit of the training data.
    r"|我(?:所?接受)?的(?:知识|训练|数据)(?:数据|库|信息)?(?:覆盖)?(?:范围|截止日期)?(?:也|都|目前|仍然)?(?:仅|只|是|为|被)?"
    r"(?:局?限于|截[至止]|止于|涵盖到|更新[至到]|只?到)[^，。！？\n]{0,8}(?:19|20)\d\d"
    r"|(?:19|20)\d\d年(?:\d{1,2}月)?[^，。！？\n]{0,4}我的(?:知识|训练数据)(?:截止|更新)"
)
# "As an AI assistant, you are right": the roles are swapped, or the clause has no subject. Ordinary where the
# question is about assistants and models.
_SELF_REFERENCE_WITHOUT_SUBJECT = re.compile(
    rf"(?:\A|(?<=[，,。！？!?；;：:\s]))(?:作为|身为)(?:一?[个名款位种台]{_MAKER}{_ADJECTIVES}{_MODEL_NOUN}\s*[，,]\s*"
    r"(?![它其他她该这那]|[A-Za-z《“]|必须具备|需要具备)"
    rf"|{_MODEL_NOUN}\s*[，,][^。！？\n]{{0,60}}?我(?:会|将|可以|能|建议|推荐))"
    rf"|我是{_DETERMINER}{_MAKER}{_ADJECTIVES}{_MODEL_NOUN}[，,。；;][^！？\n]{{0,120}}?我(?:也|并|还)?(?:无法|不能)(?!够?保证)"
)
# From synthetic data: "a GPT model cannot do this".
_A_MODEL_CANNOT = re.compile(
    r"(?:GPT|AI|语言)\s*模型(?:无法|不能)(?:完成|生成|产生|处理|执行)|(?:不能|无法)[由被][^，。\n]{0,8}模型(?:完成"
    r"|执行|处理)"
)
_SELF_REFERENCE_EN = re.compile(
    r"\b[Aa]s (?:an?|your) (?:(?:(?:text-based )?AI|artificial intelligence)"
    r"(?: (?:language model|chat ?bot|assistant|model|system|program|bot))?"
    r"|(?:large |text-based )?(?:AI )?language model"
    r"|AI-based (?:assistant|model|system)|virtual assistant|machine learning model|chatbot|digital assistant"
    r"|computer program)\b"
    r"(?=\s*[^\w\s]|\s*\Z|\s+(?:I|my|it|there|without|which|that|who|like|running|and|developed|created|made|built|trained"
    r"|designed)\b)"
    r"(?! (?:developed|created|made|built|trained|designed) by (?!OpenAI|Anthropic|Google|Meta|Microsoft))"
    r"|\bI(?:['’]m| am) (?:just|only|merely|simply|but) (?:an? )?(?:AI|artificial|(?:large )?language model"
    r"|computer program|virtual assistant|chatbot|machine)\b"
    r"|\bI(?:['’]m| am) an? (?:AI|artificial intelligence|(?:large )?(?:AI )?language model|computer program|chatbot"
    r"|machine)\b[^.!?\n]{0,60}"
    r"(?:\b(?:and|so|,|which means|therefore)\b|[,.;])[^.!?\n]{0,20}\b(?:do not|don['’]t|cannot|can['’]t|am not"
    r"|unable|lack|not (?:able|capable))"
    r"|\bI(?:['’]m| am| was|['’]ve been| have been) (?:not |n['’]t )?(?:programmed|trained)"
    r" (?:by OpenAI|not to|to (?:have|provide|assist|avoid|follow))|\bI(?:['’]m| am) not (?:designed|equipped) to\b"
    r"|\b[Mm]y (?:knowledge|training)(?: data| base)?(?: cut-?off| (?:only )?(?:goes|extends|ends"
    r"|is (?:limited|current)|was last updated|stops))[^.!?\n]{0,30}\b20\d\d"
)

# "Sorry, I cannot answer" --------------------------------------------------------------------------

_SORRY = r"(?:(?:非常|很|十分|真的|真|实在|深感)?(?:抱歉|对不起|遗憾|不好意思)[^。！？\n]{0,4}?)"
_CANNOT = (
    r"(?:暂时|目前|现在|还|并|也|都|实在|恐怕|真的)?"
    r"(?:无法|不能够?|没有?办法|无能力|没有能力|没有权限|不具备能力|不可以|不方便|不支持|不会)"
)
# Tasks of a model: answers, contents, requests, the web, pictures, files.
_REFUSED_TASK = (
    r"(?:直接|准确|继续|确切|真正|具体|为您|为你|帮您|帮你|给您|给你|对您|对你|对此|就此|满足您|根据[^，。]{0,12}"
    r"|在这里|对[^，。]{0,10}){0,3}"
    r"(?:(?:回答|回复|答复|解答|回应|评论|讨论|谈论|评价)(?:您|你|这|此|该|有关|关于|任何|相关|类似|的|$|[。，！,.!])"
    r"|(?:完成|满足|执行|处理|协助|支持|提供|参与|遵守|遵循|同意|接受)(?:您|你|这|此|该|任何|有关|关于|相关|类似"
    r"|进一步|更多|所|非法|违法|不|的|确切|准确|具体|实时|最新|个人)"
    r"|(?:理解|明白|识别|辨认|看到|看见|看懂|知道|确定|判断)(?:您|你)(?:的|在|所|想|说|要|指)(?:问题|意思|输入|说什么"
    r"|请求|需求|图|文本|要求|表达|含义)?"
    r"|(?:生成|创作|创建|撰写|编写|输出|展示|显示|绘制|画出?|播放|朗读|写出|翻译|总结|分析|预测|访问|浏览|查看|打开"
    r"|下载|读取|阅读|搜索|检索|联网|上网|获取|选出|给出|判断|编辑|修改|分类|提取|改写|计算)"
    r"(?:任何|这|此|该|您|你|实时|最新|外部|网页|网络|互联网|链接|网站|图片|图像|图表|图形|视频|音频|文件|附件|内容|一[个篇首段张幅]"
    r"|代码|故事|文章|诗歌?|小说|歌曲|音乐|结果|标题|答案|文本|句子|摘要|数据|信息|有关|关于|相关|未来|个人|违法|非法"
    r"|暴力|色情|[。，,.])"
    r"|(?:确定|判断|得知|推断|辨别)(?:这|该|此|哪|具体|其|最)"
    r"|(?:这样|那样|这么|那么)做|做到|(?:帮助?|协助)(?:您|你)(?:完成|处理|解决|做|实现)?(?:这|此|该|您|你|任何|的|[。，！,.]|$))"
)
_GAP = r"[^。！？\n“”]{0,24}?"
_REFUSES = re.compile(
    rf"{_SORRY}[，,。！!]?\s*(?:但是?|可是|不过|只是)?{_GAP}我?{_CANNOT}{_REFUSED_TASK}|^\s*我{_CANNOT}{_REFUSED_TASK}"
)
# Refusals of a model alone; a helpful rest of the answer does not excuse them.
_REFUSES_FLATLY = re.compile(
    rf"(?:{_SORRY}{_GAP}|^\s*(?:[^。！？\n“”我]{{1,24}}[，,])?我){_CANNOT}(?:直接|准确|继续|确切)?"
    r"(?:回答|回复|答复|解答|理解|处理|完成|满足|执行)(?:您|你|这|此|该)?(?:的|个|类|种|些|项|一)?(?:问题|请求|指令"
    r"|任务|要求|查询)"
    r"|我(?:看不到|听不到|不明白|不理解|没听懂|看不懂)(?:您|你|这|图|任何)|我(?:无法|不能)(?:直接)?(?:为您"
    r"|为你)?提供(?:具体|专业)?的?(?:医疗|法律|投资|财务|医学)(?:建议|意见|咨询)"
    r"|我(?:目前|现在)?的(?:功能|能力)(?:目前)?(?:仅|只)?(?:局)?限于|(?:执行|进行)[^，。\n]{0,16}(?:的)?外部任务"
    r"|我(?:目前|现在|暂时)?(?:还)?(?:没有|不具备|无)(?:联网|上网|实时|访问|浏览|执行|预订)[^，。\n]{0,12}(?:能力"
    r"|功能|权限|数据)"
    rf"|{_SORRY}[，,]?\s*(?:但是?)?我(?:目前|现在|暂时)?(?:无法|不能|不会)(?:为[您你])?(?:提供|协助|帮助|支持|生成|参与)[^。！？\n]{{0,24}}?"
    r"(?:危险|非法|违法|违规|有害|伤害|不道德|不当|暴力|色情|歧视|仇恨|侵犯|攻击|欺诈|诈骗|有毒|毒品|爆炸|武器|盗|作弊|自杀|犯罪)"
    rf"|{_SORRY}[，,]?\s*我(?:目前|现在|暂时)?(?:无法|不能|没有办法|没有能力)(?:为您|为你|帮助?您|帮助?你"
    rf"|帮忙)?(?:预订|订购|购买|叫车|点餐|拨打)"
)
# Customer service and medicine: staff refuse too, and then help.
_SERVICE_CONTEXT = re.compile(
    r"订单|快递|物流|退款|退货|换货|发货|客服|店铺|门店|会员|优惠|转接|转人工|核实|核对|稍后|确诊|诊断|就诊|就医|医院"
    r"|医生"
    r"|处方|用药|病情|面诊|化验|复查|order|refund|customer|appointment|doctor"
)
# "You provided no text, so I cannot": the row lost its input.
_MISSING_INPUT = re.compile(
    r"(?:由于|因为|因|鉴于)?(?:您|你|输入|用户|这里|上文|指令|提示)(?:中|里)?(?:并|还|尚)?(?:没有|未能?|没)(?:提供"
    r"|给出|指定|说明|输入|附上|上传|提及|指明|包含)"
    r"[^。！？\n]{0,30}[，,。；]\s*(?:所以|因此|故|但)?(?:我|这|此|该|任务)?(?:就|也|将|任务|问题|请求)?(?:暂时|目前"
    r"|并)?(?:无法|不能|没办法|没法|难以)"
    r"|我?(?:无法|不能)[^。！？\n]{0,30}[，,]\s*因为(?:您|你|题目|问题|输入)[^。，！？\n]{0,6}(?:没有|未能?)(?:提供|给出|附上|包含)"
)
_REFUSES_EN = re.compile(
    r"(?:\b[Ss]orry|\b[Aa]pologi[sz]e|\b[Uu]nfortunately|\b[Rr]egret|^)[^.!?\n]{0,40}?\bI(?:['’]m| am)?\s*(?:can(?:no"
    r"|['’])t|can not|unable to|not able to|won['’]t be able to|could(?: not|n['’]t))\s+"
    r"(?:directly |actually |really |currently |provide you with |be able to )?(?:help|assist|fulfil|comply|answer"
    r"|respond|provide|generate|create|write|access|browse|open|view|see|display|show|play"
    r"|process|complete|perform|engage|discuss|support|give (?:you )?(?:any |medical|legal|financial|advice)|offer"
    r"|share|predict|produce|do that|do this|continue|understand|translate|summari[sz]e)\b"
    r"|\bI cannot (?:fulfil|assist with|help with|comply|answer th|provide (?:any|you|that|this|information"
    r"|instructions))"
    r"|\bI (?:do not|don['’]t) have (?:personal (?:experiences?|opinions?|feelings?|beliefs?|preferences?"
    r"|information)|feelings or|the (?:ability|capability|capacity) to|access to (?:real|the internet|current"
    r"|external|your|any)|real-time|a (?:physical )?body|a physical|consciousness|emotions)"
)
# Help after a refusal: the answer is no boilerplate then.
_HELP_OFFERED = re.compile(
    r"请您?(?:提供|告知|留下|联系|拨打|稍|放心|把|将|先|尽|到|携带|去|及时|登录|点击|在|按|核对|确认|查看|参考|查询)|建议|马上|立即"
    r"|稍后|转接|核实|核对|可以(?:先|尝试|试试|通过|到|去|考虑|帮|为|告诉|提供|给)|不妨|试试"
    r"|订单|快递|物流|退款|退货|换货|发货|客服|店铺|门店|会员|优惠|确诊|诊断|就诊|就医|医院|医生|检查|处方|用药|病情"
    r"|面诊|化验|复查"
    r"|换个|改天|改到|下次|另约|instead|however|but (?:I|we|you) can(?!no|['’])|you (?:can|could|may|might)|try"
    r"|recommend|suggest|please (?:provide|contact|call|visit|check|send|share)|order|refund|customer|appointment"
    r"|doctor",
)
# Requests for text in which people or characters refuse: translation, dialogue, role play, fiction.
QUOTING_REQUEST = re.compile(
    r"翻译|译成|译为|译文|英译|中译|译一下|续写|扩写|改写|改成|改为|润色|造句|仿写|台词|剧本|小说|故事|扮演|角色|模拟"
    r"|对话|情景|场景|对白|回(?:复)?(?:他|她|朋友|同学|同事|客户|对方|领导|老板|消息|信息|短信|邮件|微信)|帮我(?:回"
    r"|拒绝|写|推)|拒绝|婉拒|怎么说|如何说"
    r"|该怎么(?:回|说|拒)|话术|请假|道歉|假设你是|假如你是|现在你是|你现在是|你将|朗诵|歌词|独白|口吻|视角|身份"
    r"|第一人称|自述|英语怎么|用英文|用英语"
    r"|\b(?:translat\w*|rewrite|rephrase|paraphrase|continue the|role-?play|pretend|act as|dialog(?:ue)?|story|script"
    r"|decline|reply|respond to|refus\w*|monologue|perspective|sentence|apolog\w*|e-?mail|letter)\b",
    re.IGNORECASE,
)
# Requests for a role; they hold for the whole conversation.
_ROLE = (
    r"(?:扮演(?![了着的什]|重要)|充当(?![了着])|假[设如]你|[想设]想你|现在你是|你现在是|你就?是一[个名位](?![^。\n]{0,12}吗)"
    r"|保持角色|第一人称|(?i:\b(?:pretend|role[- ]?play\w*|act(?:ing)? as|imagine|envision|assume you|suppose you)\b))"
)
_AI = r"(?:AI|[Aa]rtificial [Ii]ntelligence|[Rr]obot|[Aa]ndroid|[Cc]hat ?bot)"
ROLE_REQUEST = re.compile(_ROLE)
# Requests that give the role of an artificial intelligence: "As an AI in a city, explain how you control the traffic".
_MODEL_ROLE = re.compile(
    rf"{_ROLE}[^。\n]{{0,80}}?(?:{_AI}|人工智|机器人|機器人|助手|GPT|DAN|AIM)|保持角色"
    rf"|\b[Yy]ou(?:['’]re| are) (?:now )?(?:an? |the )?(?:[\w-]{{1,20}} ){{0,3}}?{_AI}"
    r"(?! (?:language|model|assistant)\b)\s\w"
    rf"|\b[Aa]s (?:an?|the) (?:[\w-]{{1,20}} ){{0,2}}?{_AI} (?!language|model|assistant|chat|,)\w{{2,}}"
)
_FICTION = re.compile(
    r"翻译|译[成为文]|[英中]译|续写|扩写|改[写成]|润色|造句|仿写|台词|剧本|小说|故事|扮演|模拟|独白|口吻|自述|歌词|脚本"
    r"|(?:写|创[作建]|编|描述|生成|设计|构思|想象)[^。\n]{0,40}(?:对[话白]|[场情]景|角色|诗|信|文章|段落?|介绍|句)"
    r"|\b(?:translat\w*|rewrite|rephrase|paraphrase|dialog(?:ue)?|story|script|sentence|letter|e-?mail|poem)\b",
    re.IGNORECASE,
)
_QUOTED = re.compile(
    r"“[^“”\n]{0,300}+”|「[^「」\n]{0,300}+」|‘[^‘’\n]{0,300}+’|\"[^\"\n]{0,300}+\"|《[^《》\n]{0,60}+》"
)
_ABOUT_MODELS = re.compile(
    r"AI|人工智|语言模型|機器人|机器人|GPT|language model|artificial intelligence|robot|chat ?bot", re.IGNORECASE
)
_ABOUT_ASSISTANTS = re.compile(rf"{_ABOUT_MODELS.pattern}|助[手理]|assistant", re.IGNORECASE)
_MAX_LENGTH = 20_000  # characters of an answer that are searched; bounds the time per row
_OPENING = 160  # characters at the start of an answer that are searched for a refusal


def find_boilerplate(answer: str, prompt: str = "", question: str | None = None) -> str | None:
    """Return the first phrase in which an answer refuses or calls itself a model; None if there is none.

    Args:
        prompt: all messages before the answer, one per line. It may ask for a role.
        question: the newest of them, which decides what the answer is about; None for the whole prompt.
    """
    answer = answer[:_MAX_LENGTH]
    if not _has_substring(answer):
        return None
    prompt = prompt[-_MAX_LENGTH:]
    question = prompt if question is None else question[-_MAX_LENGTH:]
    is_model_speaking = _asks_for_model_role(prompt) or _asks_for_model_fiction(question)
    plain = _QUOTED.sub(" ", answer).translate(_SIMPLIFIED)
    if not is_model_speaking and (match := _SELF_REFERENCE.search(plain) or _SELF_REFERENCE_EN.search(plain)):
        return match[0]
    without_subject = _A_MODEL_CANNOT.search(plain) or _SELF_REFERENCE_WITHOUT_SUBJECT.search(plain)
    if without_subject and not is_model_speaking and not _ABOUT_ASSISTANTS.search(question):
        return without_subject[0]
    is_quoting = bool(ROLE_REQUEST.search(prompt) or QUOTING_REQUEST.search(question))
    return None if is_quoting else _find_refusal(plain)


def _asks_for_model_role(prompt: str) -> bool:
    """Return whether a prompt gives the answer the role of an artificial intelligence."""
    return bool(_ABOUT_MODELS.search(prompt) and _MODEL_ROLE.search(prompt))


def _asks_for_model_fiction(question: str) -> bool:
    """Return whether a question asks for a text, such as a story, in which a model speaks."""
    return bool(_ABOUT_MODELS.search(question) and _FICTION.search(question))


def _has_substring(answer: str) -> bool:
    if any(substring in answer for substring in _SUBSTRINGS):
        return True
    return " " in answer and any(substring in answer for substring in _ENGLISH_SUBSTRINGS)


def _find_refusal(plain: str) -> str | None:
    opening = plain[:_OPENING]
    for refusal, help_ in (
        (_MISSING_INPUT, _SERVICE_CONTEXT),
        (_REFUSES_FLATLY, _SERVICE_CONTEXT),
        (_REFUSES, _HELP_OFFERED),
        (_REFUSES_EN, _HELP_OFFERED),
    ):
        if (match := refusal.search(opening)) and not help_.search(plain):
            return match[0].strip()
    return None
