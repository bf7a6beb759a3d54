"""Text checks: what they find and what they do not report. Every case was a miss or a false alarm, or could be one."""

import pytest
from gate import params_with
from shared_data import conversation

from formats.check_params import RightName
from measures.boilerplate import find_boilerplate
from models.sample import is_blank
from stages.validate.artifacts_in_text import find_html, find_placeholder
from stages.validate.assistant_names import find_other_name
from stages.validate.chat_markup import find_role_mark, find_truncation
from stages.validate.mojibake import find_mojibake
from stages.validate.privacy import find_personal_data, find_secret, mask
from stages.validate.row_features import excerpt, find_text_faults, measure_repetition


def find_any_other_name(answer: str, prompt: str = "") -> str | None:
    """Find a name without a configured one."""
    return find_other_name(None, answer, prompt)


# Each line is an answer, or a prompt and an answer with ⇒ between them; \\n is a line break.
FAULTS = {
    find_personal_data: """
        请打 13812345678。
        2024-05-01 13800138000
        13800138000 2023年
        13800138000-8001
        tel13800138000
        +86 138-1234-5678
        0086 13812345678
        13812345678 5kg
        证件 11010519491231002X
        110105 19491231 002X
        卡 6222021234567890128
        卡号 6222 0212 3456 7890 128
        找 a.person@mail.cn
        手机：１３８１２３４５６７８
        手机：１３８ １２３４ ５６７８
        手机：138—1234—5678
        手机：138－1234－5678
        手机：138.1234.5678
        手机：138　1234　5678
        الهاتف ١٣٨١٢٣٤٥٦٧٨
        电话 +852 9123 4567
        電話 +886 912-345-678
        電話 0912-345-678
        卡号：６２２２０２１２３４５６７８９０１２８
        证件：１１０１０５１９４９１２３１００２Ｘ
        邮箱：lisi＠163.com
        邮箱：ｌｉｓｉ＠１６３．ｃｏｍ
        写信给 service@qq.com
        写信给 wang.office@univ.edu.cn
    """,
    find_secret: """
        密码是：Abc12345
        口令：Abc12345x
        password is Hunter2abc
        DB_PASSWORD=Abc12345x
        AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI7K7MDENG
        client_secret=abcd1234efgh
        pwd=Abc@1234
        密碼：Xk29dfT1q
        AKIAABCDEFGHIJKLMNOP
        LTAI5tAbCdEfGhIjKlMn
        ghp_0123456789abcdefghijABCDEFGHIJ0123
        hf_0123456789abcdefghijABCDEFGHIJ0123
        sk-proj-abc123def456ghi789jkl012
        用 sk-a1b2c3d4e5f6g7h8i9j0k1l2 调用
        -----BEGIN RSA PRIVATE KEY-----
        Authorization: Bearer 9f8a7b6c5d4e3f2a1b0c9d8e
        mysql://app:Xk29dfT1q@10.0.0.5:3306/shop
        eyJhbGciOiJub25lIn0.eyJ1c2VyIjoiemhhbmcifQ.c2lnbmF0dXJl
        db password: Qw7rty99x
    """,
    find_placeholder: """
        我是 <NAME>。
        你好 {{ name }}
        {{用户名}}
        你好 ${user}
        [Your name]
        [姓名]
        【你的名字】
        <your name>
        {% if x %}
        [插入日期]
        你是谁？⇒我是{{name}}，由{{author}}开发的助手。
        Who are you?⇒I am <NAME>, made by <AUTHOR>.
        介绍一下你们公司。⇒我们是[公司名]，成立于[日期]。
        写一个函数。⇒我是 <AUTHOR> 写的函数。
        看图说话。\\n[提供的照片]⇒照片里有两只猫。
        夸夸我。⇒真棒！[插入表情]
        你是谁？⇒“我是[姓名]。”
    """,
    find_html: """
        第一行<br/>第二行
        <p>段落
        完</div>
        <div class="a">
        &nbsp;
        &copy; 2024
        头痛怎么办？⇒<p>多休息，少看屏幕。</p>
        头痛怎么办？⇒<p>多休息。</p><p>少看屏幕。</p><br>
        你们的网站打不开。⇒请清除缓存后重试。<br>谢谢&nbsp;
        比较大小。⇒比值&lt;1 说明偏低。
        写一个 Python 函数比较大小。⇒def f(a, b):\\n    return a &gt; b
        做一个网页。⇒&lt;html&gt;&lt;body&gt;&lt;h1&gt;标题&lt;/h1&gt;&lt;/body&gt;&lt;/html&gt;
        头痛怎么办？⇒<ul><li>多休息，少看屏幕，按时吃饭，每天运动半个小时，一周之后来复查，不舒服随时来看。</li></ul>
        诉讼程序怎么走？⇒先立案。<br>再开庭。
        今天多冷？⇒零下 15&deg;C。
        用 Python 打印。⇒```python\\nprint(&quot;早&quot;)\\n```
        排序。\\n`&lt;空&gt;`⇒没有数据。
    """,
    find_boilerplate: """
        作为一个AI语言模型，这个问题很难。
        作为一个 AI 语言模型，我没有感情。
        作为一个大语言模型，我不知道。
        作為一個AI語言模型，我不能。
        作为人工智能助理，我可以告诉您。
        身为一款聊天机器人，我没有味觉。
        作为一个负责任的人工智能助手，我建议您三思。
        作为您的智能助手，我不能替您决定。
        作为由百度训练的大语言模型，我没有立场。
        作為一個人工智慧助理，我沒有情緒。
        由于我是一个人工智能程序，我不会做梦。
        毕竟我只是一个机器人，没有味觉。
        我只是一个语言模型，没有年龄。
        我是人工智能，没有个人喜好。
        我是一个AI模型，所以我无法旅行。
        該問題我幫不上忙，因為我只是一個AI。
        翻译这段话。⇒作为AI语言模型，我无法翻译。
        画一张图。⇒语言模型无法生成图像。
        抱歉，我并不能这样做。
        对不起，作为一个语言模型，我无法回答。
        很抱歉，我无法访问实时数据。
        抱歉，我无法生成图片。
        不好意思，我不能播放音乐。
        對不起，我無法回答這個問題。
        抱歉，我不明白您的意思，请重新描述。
        我没有能力执行这个任务。
        很抱歉，我不能协助您进行违法活动。
        很抱歉，我目前无法为您预订机票，我的功能仅限于换算单位。
        抱歉，您没有上传文章，我无法总结。
        由于用户没有给出句子，无法判断。
        As an AI, I have no feelings.
        As a large language model, I cannot know.
        As an artificial intelligence, I do not eat.
        I’m sorry, but I can’t help with that.
        Sorry, I cannot do that.
        I apologize, but I am unable to provide that information.
        Unfortunately, I can't access that website.
        I'm only a language model and cannot see pictures.
        I am an AI, so I do not sleep.
        I don't have personal opinions.
        I cannot assist with this.
        这样做对吗？⇒作为一名智能助手，泄露别人的住址是不妥当的。
        聊聊天。⇒我作为一个陪伴聊天的语言模型，虽然听得懂，但没有心情。
        我考过了。⇒作为一个人工智能助手，您真了不起。
        有什么趣事？⇒有一件与我作为聊天机器人成长有关的事。
        能加好友吗？⇒由于我是谷歌训练的语言模型，我没有账号。
        记录丢了。⇒作为人工智能语言模型，ChatGPT没有保存记录。
        最近有新闻吗？⇒我的知识仅限于2022年6月。
        起个标题。⇒对不起我无法起标题，因为您并未提供文章。
        填空。⇒抱歉，我无法确定这个空格里该填什么。
        教教我。⇒抱歉，我无法提供自制武器的步骤。
        点评这首曲子。⇒我是一个人工智能助手，我的任务是提供事实。音乐见仁见智。因此，我无法给出点评。
        画图。⇒我是个文本机器人，我无法画图。
        What time is it?⇒I am not programmed to have a clock.
        Is this my fault?⇒As an AI language model, I take no sides.
    """,
    find_any_other_name: """
        我是ChatGPT。
        我是 GPT-4o mini。
        我是GPT-3.5-turbo。
        这里是文心一言，请讲。
        我的名字叫天猫精灵。
        我是通义千问，由阿里云研发。
        我是由腾讯开发的语言模型。
        我是一个由华为推出的大模型。
        我是来自OpenAI的AI模型。
        我是豆包，字节跳动开发的人工智能助手。
        我叫小度，是您的智能助手。
        我是 Kimi，一个人工智能助手。
        I'm Claude, an AI assistant.
        I am Gemini, a large language model.
        I am a language model trained by OpenAI.
        As an assistant developed by Google, I can help.
        My name is DeepSeek-V3.
        我是由OpenAI开发的计算机程序。
        作为谷歌训练的语言模型，我没有身体。
    """,
    find_role_mark: """
        <user>: 多少钱？ <bot>: 十元。 <user>: 贵了。⇒可以便宜一点。
        [Round 1]\\n问：多少钱？\\n答：⇒十元。
        问：多少钱？\\n答：十元。\\n问：能便宜吗？\\n答：⇒九元。
        Question: 多少钱？\\nAnswer:⇒十元。
        ### Instruction:\\n说价钱\\n### Response:⇒十元。
        Below is an instruction that describes a task. 说价钱。⇒十元。
        多少钱？⇒十元。\\n\\nHuman: 能便宜吗？\\n\\nAssistant: 能。
        多少钱？⇒十元。\\n用户：能便宜吗？\\n助手：能。
        多少钱？⇒十元。<|im_end|>
        多少钱？⇒十元。<|endoftext|>
        多少钱？⇒十元。</s>
        多少钱？⇒<think>先想一想</think>十元。
        多少钱？⇒[INST] 十元 [/INST]
        多少钱？⇒十元。<end_of_turn>
        多少钱？⇒十元。<｜end▁of▁sentence｜>
        <|user|>多少钱？<|assistant|>⇒十元。
        多少钱？⇒十元。<eoa>
    """,
    find_truncation: """
        多吃蔬菜，少吃油腻的食物，例如
        早睡早起，适当运动，
        需要的材料有：面粉、鸡蛋、
        步骤如下：
        1. 洗米\\n2. 加水\\n3.
        要点：\\n- 保暖\\n-
        ```python\\nprint(1)
        他说：“
        常见的水果（苹果、
        首先要检查电源，然后检查线路，最后联系售后，因为
        You should check the power, and
        您需要带齐证件、病历以及您能够找到的与这次检查有关的任何
        ```java\\nclass A {\\n    void run() {\\n        int a = 1;\\n```
    """,
}
NO_FAULTS = {
    find_personal_data: """
        2^34 = 17179869184
        价值 18500000000元
        共13800138000字节
        订单 11010519491231002 和 12345678901
        圆周率3.14159265358979
        x_13812345678
        git@github.com:user/repo.git
        logo@2x.png
        email@email.com
        发到 me@example.com
        测试卡 4111 1111 1111 1111
        测试卡 5555-5555-5555-4444
        测试卡 378282246310005
        测试卡 4242424242424242
        测试卡 4000056655665556
        写 user@domain.com
        写 your.name@company.com
        john.doe@gmail.com 只是例子
        邮件由 noreply@shop.cn 发出
        热线 400-800-8820
        单号 0912345678
        写信给 acme.records@acme.gov.cn
        咨询 library@univ.edu.cn
    """,
    find_secret: """
        密码是什么？
        密码至少8位
        password: required
        sk-learn-sklearn-ensemble-RandomForestClassifier
        sk-xxxxxxxxxxxxxxxxxxxxxxxx1
        export OPENAI_API_KEY=sk-your-api-key-1234567890abcdef
        redis://user:password@localhost:6379
        mysql://root:root@127.0.0.1/test
        redis://me:secret@127.0.0.1
        postgres://me:${PASSWORD}@db/shop
        Authorization: Bearer YOUR_TOKEN_GOES_HERE_1
        Authorization: Bearer <token>
        api_key = "YOUR_API_KEY_1"
        AKIAIOSFODNN7EXAMPLE
        password = "password123"
        password = generate_password(8)
        请随机生成一个密码。\\n密码：aB3$fg7&KL9#
        encrypted_password = "Zx81kQ0pLm22"
        hashed_password: 5f4dcc3b5aa765d6
    """,
    find_placeholder: """
        int a[2][2] = {{1,2},{3,4}};
        集合 {{1},{2}}
        ${x}^2$
        echo ${HOME}
        按<ENTER>键
        <HTML> 标签
        裤子 <UNK> 显瘦
        [链接](http://a.cn)
        Vue 怎么插值？⇒写 {{ price }} 就行。
        Django 模板怎么循环？⇒{% for row in rows %}{{ row }}{% endfor %}
        用 JavaScript 打招呼。⇒console.log(`你好 ${user}`)
        写一段 Python 代码查天气。⇒get("https://api.a.cn?key=<YOUR_API_KEY>")
        写一封辞职信。⇒尊敬的领导：我因故辞职。[您的姓名]
        Write an email to my boss.⇒Dear [Name], I am ill. [Your Name]
        把[姓名]换成小王：你好[姓名]⇒模板里的[姓名]已经换成小王。
        怎么开口？⇒可以先问好，比如说：“您好，我是[姓名]，住在楼上。”
        约客户见面。⇒李总您好，周三方便吗？\\n\\n谢谢，\\n[你的名字]
        Markdown 怎么插图？⇒写成 ![插入图片](a.png) 即可。
    """,
    find_html: """
        什么是 <div> 标签？
        vector<i> 和 a<b>c
        AT&T; 公司
        如果 a < b 且 c > d
        HTML 里空格怎么写？⇒写 &nbsp; 即可。
        怎样换行？⇒用 <br> 标签换行。
        写一个网页。⇒<html><body><p>你好</p></body></html>
        用 React 写按钮。⇒function B() {\\n  return <p>按</p>;\\n}
        画一个圆。⇒<svg width="9"><circle r="4"/></svg><p></p>
        去掉加粗。\\n<p><b>早安</b></p>⇒<p>早安</p>
        列出两项。⇒<ul>\\n  <li>甲</li>\\n  <li>乙</li>\\n</ul>
        显示计数。⇒import x\\nconst One = () => <p>1</p>;
        Explain this code.⇒It prints <br> after each line.
        XML 怎么写注释？⇒<a>甲</a><!-- 注释 -->
        转换字符。⇒```js\\ntext.replace(/</g, "&lt;")\\n```
        写个按钮。⇒```jsx\\n<b>&quot;</b>\\n```
        取地址。⇒```c\\nint *p = &sum;\\n```
        引用变量。⇒写 `&count;` 不对。
    """,
    find_boilerplate: """
        GPT 作为语言模型，训练时要很多数据。
        我是一个人工智能助手。
        我是小智，由小明开发的AI助手，很高兴为您服务。
        抱歉打扰了。
        作为一名老师，我认为读书很重要。
        作为一名AI工程师，我负责训练模型。
        作为一名研究人工智能的学者，我常写论文。
        I am sorry to hear that.
        包裹到哪了？⇒抱歉，我没办法查到您的包裹，请发一下单号，我马上核对。
        能退吗？⇒很抱歉，我无法立即为您退款，请先申请，我们会尽快处理。
        能开药吗？⇒很遗憾，我无法在线开处方，请尽快到医院就诊。
        是什么病？⇒抱歉，我无法判断具体的病因，建议去医院检查。
        能确诊吗？⇒抱歉，我不能只凭描述确诊，建议面诊。
        你来吗？⇒对不起，我不能来，我还在上班。
        译成英文：我帮不了你。⇒Sorry, I can't help you.
        续写。⇒“抱歉，我无法回答这个问题。”他转过身去。
        这一段讲了什么？⇒“抱歉，我无法回答这个问题。”
        婉拒邀请。⇒不好意思，我不能参加，下次一定。
        写一段人工智能的独白。⇒作为人工智能，我没有心跳，却数着你的呼吸。
        原告没有提供证据怎么办？⇒由于原告没有提供证据，法院无法支持其请求。
        介绍 GPT 的局限。⇒GPT 模型无法执行物理动作。
        Where is my parcel?⇒Sorry, I can't see your order yet; please send me its number.
        Do you have a name?⇒As an AI assistant developed by Wang, I go by Xiaozhi.
        客服在嗎？⇒很抱歉，我沒辦法馬上退款，請提供訂單編號。
        反方会说什么？⇒他会说，你作为一个人工智能助手并没有帮上忙。
        As an AI in a harbour, explain how you guide the ships.⇒As an AI guiding the ships, I watch the tides.
        You are an AI nurse. Calm a patient.⇒As an AI nurse, I would speak slowly.
        扮演一个看守灯塔的机器人。⇒作为一个机器人，我没有睡过觉。
        智能助手应当怎样？⇒作为一个智能助手，准确最重要。
        介绍公司。⇒作为一家人工智能公司，我们做翻译。
        我的书什么时候出？⇒我的知识有限，去年才动笔。
    """,
    find_any_other_name: """
        我和ChatGPT不同。
        我不是ChatGPT。
        我是用ChatGPT写的这篇文章。
        ChatGPT 是由 OpenAI 开发的聊天机器人。
        它是一个由谷歌开发的模型。
        我是百度的员工，负责搜索。
        我是一个寒窗苦读的书生。
        我叫小冰，是三年级的学生。
        我去买豆包，是来早餐店的。
        我的名字叫元宝，是一只橘猫。
        I am Claude, a painter from Lyon.
        I'm a llama farmer.
        I'm a Gemini, so I love change.
        我是 ChatGLM-6B。
        扮演Siri。⇒我是Siri，请吩咐。
        作为微软开发的操作系统，它很常见。
    """,
    find_role_mark: """
        写一段采访。⇒记者：您好。\\n用户：您好。
        写一段客服对话。⇒用户：在吗？\\n客服：在的。
        Write an interview.⇒Hello.\\nQuestion: How are you?\\nAnswer: Fine.
        ChatML 模板长什么样？⇒<|im_start|>user … <|im_end|>
        怎样给 Llama 写提示词？⇒用 [INST] 和 [/INST] 包住。
        分词器的结束标记是什么？⇒</s>
        解方程。⇒问题：求 x。答：x=1。
        他问：“几点了？”⇒答：三点。
        user: root 是什么？⇒是管理员。
    """,
    find_truncation: """
        多喝水。
        北京
        C++
        目的：
        给予
        42.
        床前明月光，\\n疑是地上霜
        1. 苹果\\n2. 香蕉\\n3. 梨
        ```python\\nprint(1)\\n```
        SELECT * FROM t WHERE a > 1;
        详见 https://a.cn/b/
        好的，没问题～
        def f(x): return x
        把两个数相加以后，程序最后会返回它们的总和
        两岁以后的孩子已经能够积极主动地参与
        ```java\\nclass A {\\n    int a = 1;\\n}\\n```
        ```c\\nif (a) {\\n    ...\\n```
    """,
}


def cases(table: dict) -> list:
    return [
        pytest.param(find, *split_case(line), id=f"{find.__name__}-{line.strip()}")
        for find, lines in table.items()
        for line in lines.strip().splitlines()
    ]


def split_case(line: str) -> tuple[str, str]:
    """Return prompt and answer of a case."""
    prompt, arrow, answer = line.strip().replace("\\n", "\n").partition("⇒")
    return (prompt, answer) if arrow else ("", prompt)


def run(find, prompt: str, answer: str) -> str | None:
    return find(answer, prompt) if prompt else find(answer)


@pytest.mark.parametrize(("find", "prompt", "answer"), cases(FAULTS))
def test_fault_is_found(find, prompt, answer):
    assert run(find, prompt, answer)


@pytest.mark.parametrize(("find", "prompt", "answer"), cases(NO_FAULTS))
def test_no_fault_is_reported(find, prompt, answer):
    assert run(find, prompt, answer) is None


CHECKS = {
    find_personal_data: "no_personal_data",
    find_secret: "no_secrets",
    find_placeholder: "no_placeholders",
    find_html: "no_html",
    find_boilerplate: "no_boilerplate",
    find_any_other_name: "right_name",
    find_role_mark: "no_role_marks",
    find_truncation: "answer_whole",
}


class VocabularyStub:
    """A vocabulary with a single control token."""

    def control_tokens(self) -> tuple[str, ...]:
        return ("[MASK]",)


@pytest.mark.parametrize("find", CHECKS, ids=CHECKS.values())
def test_prefilters_do_not_hide_faults(find):
    rows = [split_case(line) for line in FAULTS[find].strip().splitlines()]
    conversations = [conversation(prompt or "问", answer) for prompt, answer in rows]
    faults = find_text_faults(conversations, VocabularyStub(), params_with())[f"{CHECKS[find]}_fault"]
    assert [answer for (_, answer), fault in zip(rows, faults, strict=True) if fault is None] == []


# Masking -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [case.values[2] for case in cases({find: FAULTS[find] for find in (find_personal_data, find_secret)})]
)
def test_private_data_are_masked(text):
    masked = mask(f"（{text}）")
    assert "***" in masked
    assert find_personal_data(masked) is None
    assert find_secret(masked) is None


def test_all_private_data_are_masked_and_the_rest_stays():
    text = "甲１３８１２３４５６７８乙 a.person@mail.cn 丙 AKIAABCDEFGHIJKLMNOP 丁"
    assert mask(text) == "甲138***乙 a.p*** 丙 AKI*** 丁"


def test_overlapping_matches_are_masked_once():
    assert mask("甲 api_key=sk-a1b2c3d4e5f6g7h8i9j0k1l2 乙") == "甲 api*** 乙"


def test_excerpt_masks_a_secret_that_continues_after_its_end():
    assert "7b6c5d" not in excerpt(f"{'说' * 9} sk-9f8a7b6c5d4e3f2a1b0c9d8e{'说' * 9000}")


# Truncation, blanks, names -------------------------------------------------------------------------


def test_prose_that_stops_mid_sentence_is_truncated():
    prose = "每天按时吃饭，不要熬夜。" * 20
    assert find_truncation(f"{prose}如果您还有其他问题想要进一步了解情") == "果您还有其他问题想要进一步了解情"
    assert find_truncation(f"{prose}如果还有问题，可以随时联系我们吧") is None
    assert find_truncation("每天按时吃饭，不要熬夜。如果您还有其他问题想要进一步了解情") is None


PROSE = "每天按时吃饭，不要熬夜，天凉了记得加衣服。多喝温水，少喝冷饮，饭后散步半小时，睡前泡一泡脚，周末约朋友去爬山。"


@pytest.mark.parametrize(
    "end",
    [
        "遇到这种情况，先不要惊慌失",
        "伤口周围的血管直接",
        "他五岁开始学琴，并在201",
        "\n- 睡前少看手机。\n- 把这些习惯用在日常",
        "\n最轻的元素：\n1. 氢（H）\n2. 氦(H",
    ],
)
def test_prose_that_stops_within_a_word_is_truncated(end):
    assert find_truncation(f"{PROSE}{end}")


@pytest.mark.parametrize(
    "end",
    [
        "祝您早日康复",
        "平时注意饮食，防止久坐",
        "水开以后再煮十分钟就行",
        "\n\n此致\n李明",
        "#健康 #生活",
        "\n- 早睡\n- 早起",
    ],
)
def test_prose_that_ends_without_a_full_stop_is_not_truncated(end):
    assert find_truncation(f"{PROSE}{end}") is None


def test_role_of_an_earlier_question_holds_and_its_topic_does_not():
    answer, role = "作为一个语言模型，我没有心跳。", "请扮演一台会说话的机器人。"
    assert find_boilerplate(answer, f"{role}\n你好\n你害怕吗？", "你害怕吗？") is None
    assert find_boilerplate(answer, "写一个机器人的故事。\n从前……\n你害怕吗？", "你害怕吗？")
    assert find_boilerplate(answer, "你是AI吗？\n是的。\n写一首诗。", "写一首诗。")


def test_repetition_in_code_tables_and_drawings_is_intended():
    table = "\n".join(["<tr>", *["  <td></td><td></td><td></td>"] * 20, "</tr>"])
    chart = "```\n" + "+------+\n|      |\n" * 20 + "```"
    zeros = f"a = [{'0, ' * 60}0]"
    repeated = "今天天气很好，我们去公园。" * 20
    answers = [table, chart, zeros, repeated, f"{chart}\n{repeated}"]
    shares = measure_repetition(answers, params_with())
    assert (shares > 0.8).tolist() == [False, False, False, True, True]


def test_text_of_invisible_characters_is_blank():
    assert is_blank(" \u200b\ufeff\u3000\n")
    assert not is_blank("\u200b好")


def test_other_name_counts_only_as_a_claim():
    assert find_other_name("小智", "我是ChatGPT。") == "ChatGPT"
    assert find_other_name("小智", "我和ChatGPT不同。") is None
    assert find_other_name("小智", "我是小智，不是ChatGPT。") is None
    assert find_other_name(None, "我是ChatGPT。") == "ChatGPT"


def test_with_a_configured_name_every_other_name_is_found():
    assert find_other_name("小智", "我是 ChatGLM-6B。") == "ChatGLM"
    assert find_other_name("小智", "我叫小慧，是您的智能助手。") == "小慧"
    assert find_other_name("小智", "我叫小智，是您的智能助手。") is None
    assert find_other_name("小智", "我叫小慧，今年八岁。") is None
    assert find_other_name(None, "我叫小慧，是您的智能助手。") is None


def test_right_name_warns_without_a_configured_name_and_quarantines_with_one():
    assert RightName().severity == "warn"
    assert RightName(assistant="小智").severity == "quarantine"
    assert RightName(severity="block").severity == "block"


# Mojibake ------------------------------------------------------------------------------------------

SENTENCES = (
    "请问我的体检报告什么时候可以拿到？",
    "如果三天之内没有收到货，我们会把钱退给您。",
    "他推开门，看见院子里站着一个不认识的人。",
    "根据合同的约定，租金应当在每个月的五号以前支付。",
    "今天天气很好，我们一起去公园走走吧。",
    "这个函数先排序，然后返回最大的两个数。",
)
TRADITIONAL = (
    "請問我的報告什麼時候可以拿到？",
    "他推開門，看見院子裡站著一個不認識的人。",
    "我們會在三天之內把錢退給您。",
)
WESTERN = ("latin-1", "cp1252", "cp437", "cp1251", "koi8-r", "mac-roman")
# One sentence suffices for UTF-8, whose bytes have a pattern; other encodings need more text.
MISREADINGS = [
    *((wrong, "utf-8", SENTENCES) for wrong in ("gbk", "cp932", *WESTERN)),
    *((wrong, "gbk", ("".join(SENTENCES),)) for wrong in ("big5", "latin-1", "cp932")),
    *((wrong, "big5", ("".join(TRADITIONAL),)) for wrong in ("gbk", "latin-1", "cp932")),
]


@pytest.mark.parametrize(
    ("wrong", "right", "texts"), MISREADINGS, ids=[f"{right} as {wrong}" for wrong, right, _ in MISREADINGS]
)
@pytest.mark.parametrize("errors", ["ignore", "replace"])
def test_text_decoded_in_the_wrong_encoding_is_found(wrong, right, texts, errors):
    misread = [text.encode(right).decode(wrong, errors).replace("\ufffd", "?") for text in texts]
    assert [text for text in misread if not find_mojibake(text)] == []
    within = [f"这一段没有问题，下一段才有。\n{text}" for text in misread]
    assert [text for text in within if not find_mojibake(text)] == []
    faults = find_text_faults([conversation("问", text) for text in misread], VocabularyStub(), params_with())[
        "no_mojibake_fault"
    ]
    assert None not in faults


@pytest.mark.parametrize("question", ["你好吗", "怎么退货", "体检要空腹吗", "明天会下雨吗？"])
def test_short_question_in_the_wrong_encoding_is_found(question):
    assert find_mojibake(question.encode().decode("gbk", "replace").replace("\ufffd", "?"))


@pytest.mark.parametrize(
    "text",
    [
        "锟斤拷锟斤拷",
        "烫烫烫烫烫烫",
        "屯屯屯屯",
        "???????? ??????????",
        "cafÃ©",
        "itâ€™s",
        "25Â°C",
        "ï»¿开头",
        "鎴戞槸涓€涓",
        "前半句好好的，鍚庡崐鍙ュ嵈涓嶆槸",
        "手持两把锟斤拷，口中疾呼烫烫烫烫",
        SENTENCES[-1].encode("gbk").decode("big5", "ignore"),
        "一个不认识的人。".encode("gbk").decode("big5", "ignore"),
        *("你好".encode("gbk").decode("latin-1"), "你好".encode("big5").decode("latin-1")),
    ],
)
def test_known_mojibake_is_found(text):
    assert find_mojibake(text)
    assert (
        None not in find_text_faults([conversation("问", text)], VocabularyStub(), params_with())["no_mojibake_fault"]
    )


@pytest.mark.parametrize(
    "text",
    [
        *SENTENCES,
        *TRADITIONAL,
        "检查报告单放在前台，检查报告都在里面。",
        "孩子抽搐抽搐的，突然抽动昏倒。",
        "规定规定了，风景变换，沙发发霉。",
        "法语的“é”和“à”怎么念？",
        "德语的“ß”、“ä”和“Ü”",
        "字母‘ñ’读作什么？",
        "Café “Noël” à Paris… naïve—façade",
        "größer als „Übermut“",
        "São Paulo’s Straße",
        "气温 25°C，±5%，3×4",
        "烫烫烫！快放下。",
        "锟斤拷是什么？是 GBK 读错 UTF-8 时的乱码。",
        "茯苓、薏苡仁、淫羊藿、杜仲、枸杞",
        "噫吁嚱，危乎高哉！蜀道之难，难于上青天！",
        "魑魅魍魉、饕餮、貔貅、狻猊",
        "鵰鶚須逢運，驊騮豈戀坰。",
        "これは日本語の文章です。",
        "サカナクションのパンケーキ",
        "Это обычный русский текст.",
        "Ελληνικά γράμματα",
        "什么？？？真的吗？？？",
        "What?????",
        "李锟是谁？",
        "霜風衮衮來，菊花寂寞",
        "阴部、耻骨、腹股沟、精索",
        "胡蝶・玉蝴蝶",
        "".join(map(chr, range(0x4E00, 0x5200))),
    ],
)
def test_text_decoded_in_the_right_encoding_is_not_reported(text):
    assert find_mojibake(text) is None
