"""Tiny archives in the shape of the official downloads."""

import io
import tarfile
import zipfile
from pathlib import Path

INFO = """code_module,code_presentation,id_student,gender,region,highest_education,imd_band,age_band,num_of_prev_attempts,studied_credits,disability,final_result
AAA,2013J,11,M,Scotland,HE Qualification,10-20,55<=,0,240,N,Pass
BBB,2014B,11,F,Wales,A Level or Equivalent,,0-35,1,60,Y,Fail
AAA,2013J,12,F,London Region,Lower Than A Level,90-100%,35-55,0,60,N,Pass
AAA,2013J,13,F,London Region,Lower Than A Level,?,35-55,0,60,N,Withdrawn
AAA,2013J,14,F,London Region,Lower Than A Level,20-30%,35-55,0,60,N,Withdrawn
AAA,2013J,15,F,London Region,Lower Than A Level,20-30%,35-55,0,60,N,Pass
"""
REGISTRATION = """code_module,code_presentation,id_student,date_registration,date_unregistration
AAA,2013J,11,-159,
BBB,2014B,11,-20,
AAA,2013J,12,-53,12
AAA,2013J,13,3,
AAA,2013J,14,-53,-5
AAA,2013J,15,,
"""
VLE = """code_module,code_presentation,id_student,id_site,date,sum_click
AAA,2013J,11,1,-10,4
AAA,2013J,11,2,-10,1
AAA,2013J,11,1,-1,2
AAA,2013J,11,1,0,7
AAA,2013J,11,1,29,8
AAA,2013J,11,1,30,100
BBB,2014B,11,1,3,5
BBB,2014B,11,2,3,5
AAA,2013J,14,1,3,5
"""


def oulad_files() -> dict[str, str]:
    return {"studentInfo.csv": INFO, "studentRegistration.csv": REGISTRATION, "studentVle.csv": VLE}


def write_oulad(folder: Path, **changes: str) -> Path:
    path = folder / "anonymisedData.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**oulad_files(), **changes}.items():
            archive.writestr(name, text)
    return path


USERS = """user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,fans_user_num,friend_user_num,register_days
0,full_active,0,-124,1,5,150,34,799
1,high_active,0,1,0,457,20,3,14
2,low_active,0,0,1,0,0,0,30
"""
_HEADER = "user_id,video_id,date,hourmin,play_time_ms\n"
LOGS = {
    "log_standard_4_08_to_4_21_pure.csv": _HEADER
    + "0,1,20220408,900,1000\n0,2,20220409,900,1000\n0,2,20220409,901,9\n",
    "log_standard_4_22_to_5_08_pure.csv": _HEADER
    + "0,1,20220424,900,60000\n1,1,20220425,900,60000\n1,2,20220425,901,30000\n1,2,20220508,1,6\n",
    "log_random_4_22_to_5_08_pure.csv": _HEADER + "0,5,20220423,900,1\n1,7,20220501,900,30000\n",
}


def write_kuairand(folder: Path) -> Path:
    path = folder / "KuaiRand-Pure.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in {**LOGS, "user_features_pure.csv": USERS}.items():
            member = tarfile.TarInfo(f"KuaiRand-Pure/data/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return path
